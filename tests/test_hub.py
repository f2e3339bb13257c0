"""What describes a model on the hub is fetched at first use, with the real huggingface_hub.

The hub is a server on loopback that has the routes for single files.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import pickle
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import huggingface_hub.utils._http
import pytest

from checkpoints_made import LAST_TOKEN, MODULES
from embedders import FakeManager
from emberd import Embedder, HubError, Reranker, hub, model_card, model_files
from emberd.catalog import WEB_TASK
from emberd.engines.sglang import support
from emberd.errors import InstructionError, SettingError
from emberd.prompts import rerank_frame
from emberd.settings import RerankSettings, Settings
from fake_reranker import FakeReranker
from http_server import HttpServer, Request, head, reply

MODEL: Final = "owner/model"
COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"
PROMPTS: Final = "config_sentence_transformers.json"
BARE: Final = {"query_instruction": "", "document_instruction": ""}
TOKENIZER: Final[dict[str, Any]] = {"normalizer": {"type": "NFC"}, "post_processor": None}
FILES: Final[Mapping[str, Any]] = {
    "config.json": {"architectures": ["Qwen3ForCausalLM"], "hidden_size": 64},
    PROMPTS: {"prompts": {"query": "q: ", "document": "d: "}},
    "modules.json": [{"path": path, "type": kind} for path, kind in MODULES],
    "1_Pooling/config.json": LAST_TOKEN,
    "tokenizer.json": TOKENIZER,
}
_ERRORS: Final = {
    "gated": (403, "GatedRepo"),
    "gone": (401, "RepoNotFound"),
    "no revision": (404, "RevisionNotFound"),
    "broken": (500, "Internal"),
}


def load_card(settings: Settings) -> None:
    """Do what an embedder does before its first text."""
    settings.obtain_card()
    settings.check_card()


@dataclass
class Hub:
    """What the hub has, and how it fails."""

    files: dict[str, Any] = field(default_factory=lambda: dict(FILES))
    fails: str = ""
    breaks_off: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    threads: list[str] = field(default_factory=list)

    def answer(self, request: Request, connection: socket.socket) -> bytes:
        self.requests.append((request.method, request.path))
        self.tokens.add(request.headers.get("authorization"))
        if self.fails:
            status, code = _ERRORS[self.fails]
            return reply(status, b"", {"X-Error-Code": code, "X-Error-Message": self.fails})
        name = request.path.partition("/resolve/")[2].partition("/")[2]
        commit = {"X-Repo-Commit": COMMIT}
        if name not in self.files:
            return reply(404, b"", {"X-Error-Code": "EntryNotFound", **commit})
        content = json.dumps(self.files[name]).encode()
        about = {**commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        if request.method == "HEAD":
            return head(200, len(content), about)
        if self.breaks_off == name:
            connection.sendall(head(200, len(content), about) + content[:5])
            raise ConnectionError
        return reply(200, content, about)


class _NoPauses:
    def __getattr__(self, name: str) -> Any:
        return (lambda _: None) if name == "sleep" else getattr(time, name)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(hub, "_failed", set())
    # The library repeats what failed after longer and longer pauses.
    monkeypatch.setattr(huggingface_hub.utils._http, "time", _NoPauses())
    return tmp_path / "hub"


@pytest.fixture
def served(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = Hub()
    with HttpServer(made.answer) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield made


def test_prompts_and_facts_come_from_the_hub_at_first_use(served: Hub) -> None:
    embedder = Embedder(MODEL)
    assert served.requests == [], "construction opens no connection"
    assert (embedder.query_template, embedder.document_template) == ("q: {text}", "d: {text}")
    known = embedder.settings.known
    assert (known.dimensions, known.normalization) == (64, "NFC")
    assert not any(path.endswith(("safetensors", "bin")) for _, path in served.requests)


def test_a_second_object_and_another_process_ask_the_hub_nothing(
    served: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Embedder(MODEL).query_template == "q: {text}"
    served.requests.clear()
    monkeypatch.setattr(model_card, "_chosen", {})  # as in another process
    settings = Settings.resolve(model=MODEL)
    assert settings.query_template == "q: {text}"
    load_card(settings)
    assert served.requests == []


def test_a_process_keeps_to_the_commit_that_it_has_read(served: Hub, cache: Path) -> None:
    settings = Settings.resolve(model=MODEL)
    load_card(settings)
    (cache / "models--owner--model/refs/main").write_text("f" * 40)
    (cache / "models--owner--model/snapshots" / ("f" * 40)).mkdir()
    assert settings.query_template == "q: {text}"


def test_a_revision_is_fetched_as_given(served: Hub) -> None:
    assert Embedder(MODEL, revision=COMMIT).query_template == "q: {text}"
    assert all(f"/resolve/{COMMIT}/" in path for _, path in served.requests)


def test_the_users_token_is_sent(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_made_up")
    load_card(Settings.resolve(model=MODEL))
    assert served.tokens == {"Bearer hf_made_up"}


def test_a_model_whose_files_have_no_prompts_asks_for_them_at_first_use(served: Hub) -> None:
    del served.files[PROMPTS]
    embedder = Embedder(MODEL, query_instruction="q: {text}")
    with pytest.raises(InstructionError, match=PROMPTS) as raised:
        embedder.embed_query("a")
    assert "document_instruction=" in str(raised.value)
    with pytest.raises(InstructionError, match=PROMPTS):
        Embedder(MODEL)
    assert Embedder(MODEL, symmetric=True, query_instruction="").query_template == "{text}"


def test_a_wrong_dimension_is_refused_when_the_files_are_known(served: Hub) -> None:
    embedder = Embedder(MODEL, dimensions=128)
    with pytest.raises(SettingError, match="dimensions=128"):
        embedder.embed_documents(["a"])


def test_vectors_that_the_model_cuts_need_a_decision(served: Hub) -> None:
    served.files[PROMPTS] = {**served.files[PROMPTS], "truncate_dim": 32}
    with pytest.raises(SettingError, match="dimensions=32"):
        Embedder(MODEL).embed_query("a")
    assert Embedder(MODEL).settings.dimensions == 32, "known at construction"


@pytest.mark.parametrize("earlier", ["a failed use", "ensure", "another object", "a pickle"])
def test_the_files_are_checked_at_a_use_whoever_fetched_them(served: Hub, earlier: str) -> None:
    served.files[PROMPTS] = {**served.files[PROMPTS], "truncate_dim": 32}
    embedder = Embedder(MODEL)
    if earlier == "a failed use":
        with pytest.raises(SettingError):
            embedder.embed_query("a")
    elif earlier == "ensure":
        embedder.settings.fetch_card()  # as ServerHandle does
    else:
        hub.fetch(MODEL, None, optional=False)
    if earlier == "a pickle":
        embedder = pickle.loads(pickle.dumps(embedder))
    for _ in range(2):
        with pytest.raises(SettingError, match="dimensions=32"):
            _ = embedder.query_template
        with pytest.raises(SettingError, match="dimensions=32"):
            _ = embedder.identity
    native = pickle.loads(pickle.dumps(Embedder(MODEL).replace(dimensions=None)))
    assert native.using(batch_size=8).query_template == "q: {text}"
    assert embedder.using(dimensions=None).query_template == "q: {text}", "chosen"


def test_symmetric_is_compared_when_the_templates_are_known(served: Hub) -> None:
    made = Embedder(MODEL).using(symmetric=True)
    refused = Embedder(MODEL, query_instruction="q: {text}").using(symmetric=True)
    twins = refused, refused.using(batch_size=8), pickle.loads(pickle.dumps(refused))
    assert served.requests == []
    assert made.query_template == made.document_template == "d: {text}"
    for twin in twins:
        for _ in range(2):
            with pytest.raises(SettingError, match="symmetric"):
                _ = twin.document_template
    with pytest.raises(SettingError, match="symmetric"):
        Embedder(MODEL, query_instruction="q: {text}").using(symmetric=True)
    again = refused.using(symmetric=False)
    assert (again.query_template, again.document_template) == ("q: {text}", "d: {text}")


def test_pooling_is_checked_before_a_start(served: Hub, cache: Path) -> None:
    served.files["1_Pooling/config.json"] = {**LAST_TOKEN, "pooling_mode": "mean"}
    settings = Settings.resolve(model=MODEL)
    load_card(settings)
    snapshot = model_files.hub_snapshot(MODEL, None)
    assert snapshot is not None
    assert "mean" in (support.why_unservable(snapshot, partial=True) or "")


def test_a_bare_repository_of_transformers_is_like_such_a_folder(served: Hub) -> None:
    for name in ("modules.json", "1_Pooling/config.json", PROMPTS):
        del served.files[name]
    settings = Settings.resolve(model=MODEL, **BARE)
    load_card(settings)
    snapshot = model_files.hub_snapshot(MODEL, None)
    assert snapshot is not None
    assert support.why_unservable(snapshot, partial=True) is None
    (note,) = support.notes(MODEL)
    assert "not verified" in note


def test_a_reranker_on_the_hub_is_refused_once_its_files_are_known(served: Hub) -> None:
    for name in ("modules.json", "1_Pooling/config.json"):
        del served.files[name]
    served.files[PROMPTS] = {"model_type": "CrossEncoder"}
    settings = Settings.resolve(model=MODEL, **BARE)
    settings.obtain_card()
    with pytest.raises(SettingError, match="reranker"):
        settings.check_card()
    RerankSettings.resolve(model=MODEL).check_task()


def test_an_embedding_model_on_the_hub_is_refused_as_a_reranker(served: Hub) -> None:
    settings = RerankSettings.resolve(model=MODEL)
    settings.fetch_card()
    with pytest.raises(SettingError, match="embedding model"):
        settings.check_task()


TASK: Final = "Given a legal question, find the statute"
RERANKER: Final[Mapping[str, Any]] = {
    "config.json": FILES["config.json"],
    "tokenizer.json": TOKENIZER,
    PROMPTS: {
        "model_type": "CrossEncoder",
        "prompts": {"law": TASK},
        "default_prompt_name": "law",
    },
}


@pytest.fixture
def scorer() -> Iterator[FakeReranker]:
    with FakeReranker(model=MODEL) as server:
        yield server


def score(reranker: Reranker, twin: str, **given: str) -> None:
    """Score a document by a method of threads, or by its asynchronous twin."""
    if twin == "threads":
        reranker.scores("q", ["d"], **given)
    else:
        asyncio.run(reranker.ascores("q", ["d"], **given))


def reranker_of(server: FakeReranker, model: str = MODEL) -> Reranker:
    """Return a reranker whose server runs already."""
    return Reranker(model, manager=FakeManager(server), timeout=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("twin", ["threads", "event loop"])
def test_the_first_call_of_a_reranker_uses_the_default_instruction_of_its_files(
    served: Hub, scorer: FakeReranker, twin: str
) -> None:
    served.files = dict(RERANKER)
    score(reranker_of(scorer), twin)
    assert scorer.scored[-1] == ["d".join(rerank_frame("q", TASK))]


@pytest.mark.parametrize("twin", ["threads", "event loop"])
def test_a_default_instruction_that_cannot_be_fetched_is_not_assumed(
    served: Hub, scorer: FakeReranker, twin: str
) -> None:
    served.files, served.fails = dict(RERANKER), "gone"
    reranker = reranker_of(scorer)
    score(reranker, twin, instruction="Find it")
    assert scorer.scored[-1] == ["d".join(rerank_frame("q", "Find it"))]
    for _ in range(2):
        with pytest.raises(HubError) as raised:
            score(reranker, twin)
        assert " instruction=" in str(raised.value)
        assert "query_instruction" not in str(raised.value)
    assert scorer.scored[-1] == ["d".join(rerank_frame("q", "Find it"))]
    served.fails = ""
    score(reranker, twin)
    assert scorer.scored[-1] == ["d".join(rerank_frame("q", TASK))]


@pytest.mark.parametrize("twin", ["threads", "event loop"])
def test_a_model_that_turns_out_to_be_no_reranker_is_refused_although_its_server_is_known(
    served: Hub, scorer: FakeReranker, twin: str
) -> None:
    served.fails = "gone"
    reranker = reranker_of(scorer)
    score(reranker, twin, instruction="Find it")
    served.fails = ""
    with pytest.raises(SettingError):
        score(reranker, twin)


def test_a_reranker_of_the_catalog_needs_no_hub(served: Hub) -> None:
    served.fails = "gone"
    with FakeReranker(model="Qwen/Qwen3-Reranker-0.6B") as server:
        reranker_of(server, server.model).scores("q", ["d"])
        assert server.scored[-1] == ["d".join(rerank_frame("q", WEB_TASK))]
    assert served.requests == []


@pytest.mark.parametrize(
    ("fails", "advice"),
    [
        ("gated", "hf auth login"),
        ("gone", "model="),
        ("no revision", "revision="),
        ("broken", "status 500"),
    ],
)
def test_hub_error_is_raised_unless_both_instructions_are_given(
    served: Hub, fails: str, advice: str
) -> None:
    served.fails = fails
    with pytest.raises(HubError, match=MODEL) as raised:
        Embedder(MODEL, revision="v1").embed_query("a")
    assert advice in str(raised.value)
    assert "query_instruction=" in str(raised.value)
    settings = Settings.resolve(model=MODEL, revision="v1", **BARE)
    served.requests.clear()
    load_card(settings)
    assert served.requests == [], "it is not delayed again by what has failed"
    assert settings.query_template == "{text}"
    served.fails = ""
    assert Embedder(MODEL, revision="v1").query_template == "q: {text}", "the next try"


def test_a_connection_that_breaks_off_is_an_error_and_the_next_try_succeeds(served: Hub) -> None:
    served.breaks_off = PROMPTS
    with pytest.raises(HubError):
        Embedder(MODEL).embed_query("a")
    served.breaks_off = ""
    assert Embedder(MODEL).query_template == "q: {text}"


def test_a_hub_that_does_not_answer_in_time_is_an_error(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def answer(request: Request, connection: socket.socket) -> bytes:
        released.wait(30)
        raise ConnectionError

    monkeypatch.setattr(hub, "TIMEOUT_S", 0.5)
    with HttpServer(answer) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        with pytest.raises(HubError, match="within"):
            Embedder(MODEL).embed_query("a")
        released.set()


def test_without_a_network_the_error_says_so(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", url)
    with pytest.raises(HubError, match="hf download owner/model"):
        Embedder(MODEL).embed_query("a")


def test_a_model_with_both_instructions_is_used_without_what_the_hub_refuses(
    served: Hub,
) -> None:
    served.fails = "gone"
    settings = Settings.resolve(model="owner/private", **BARE)
    load_card(settings)
    assert served.requests
    assert settings.query_template == settings.document_template == "{text}"


def test_offline_nothing_is_asked(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        Embedder(MODEL).embed_query("a")
    made = Embedder(MODEL, query_instruction="", document_instruction="")
    assert made.query_template == "{text}"
    assert served.requests == []


def test_without_huggingface_hub_the_error_says_what_to_install(
    served: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(HubError, match="pip install huggingface_hub"):
        Embedder(MODEL).embed_query("a")
    load_card(Settings.resolve(model=MODEL, **BARE))


@pytest.mark.parametrize("name", ["a/b/c", "my model:v1"])
def test_a_name_that_no_hub_has_is_not_asked_for(served: Hub, name: str) -> None:
    with pytest.raises(HubError, match="model="):
        Embedder(name).embed_query("a")
    assert served.requests == []


def test_the_name_of_a_given_servers_model_is_not_sent_to_the_hub(served: Hub) -> None:
    settings = Settings.resolve(model="internal", base_url="http://127.0.0.1:9", **BARE)
    load_card(settings)
    assert served.requests == []


def test_an_asynchronous_caller_waits_in_a_thread(
    served: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    fetch = hub.fetch

    def noted(model: str, revision: str | None, *, optional: bool) -> None:
        threads.append(threading.current_thread())
        fetch(model, revision, optional=optional)

    monkeypatch.setattr(hub, "fetch", noted)
    served.fails = "gone"

    async def all_calls() -> None:
        embedder = Embedder(MODEL)
        with pytest.raises(HubError):
            await embedder.aembed_query("a")
        with pytest.raises(HubError):
            await embedder.aembed_documents(["a"])
        with pytest.raises(HubError):
            await anext(embedder.aiter_documents(["a"]))

    asyncio.run(all_calls())
    assert threads
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("given", [{}, BARE])
def test_a_query_reads_no_files_and_sees_none_that_arrive_later(
    served: Hub, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    served.fails = "gone" if given else ""
    embedder = Embedder(MODEL, **given)
    before = embedder.query_template
    served.fails = ""
    served.files[PROMPTS] = {**served.files[PROMPTS], "truncate_dim": 32}
    hub.fetch(MODEL, None, optional=False)
    known, twin = embedder.settings.known, embedder.using(batch_size=8)
    for name in ("describe", "is_incomplete", "hub_snapshot"):
        monkeypatch.delattr(model_card, name)
    for each in (embedder, twin):
        assert each.query_template == before
        assert each.settings.known is known
    assert known.cut_to is None


def test_a_change_that_needs_the_files_fetches_them(served: Hub) -> None:
    served.fails = "gone"
    embedder = Embedder(MODEL, query_instruction="", document_instruction="")
    assert embedder.query_template == "{text}"
    served.fails = ""
    twin = embedder.using(query_instruction=None)
    assert (twin.query_template, embedder.query_template) == ("q: {text}", "{text}")


@pytest.mark.parametrize("kind", ["tasks", "threads"])
def test_callers_share_one_fetch(served: Hub, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    fetches: list[str] = []
    fetch, waiting = hub.fetch, threading.Event()

    def noted(model: str, revision: str | None, *, optional: bool) -> None:
        fetches.append(model)
        waiting.wait(30)
        fetch(model, revision, optional=optional)

    monkeypatch.setattr(hub, "fetch", noted)
    embedder = Embedder(MODEL)

    async def prepare_all() -> None:
        tasks = [asyncio.create_task(embedder._aprepare()) for _ in range(200)]
        await asyncio.sleep(0)  # each task has asked
        waiting.set()
        await asyncio.gather(*tasks)

    if kind == "tasks":
        asyncio.run(prepare_all())
    else:
        found: list[str] = []
        callers = [
            threading.Thread(target=lambda: found.append(embedder.query_template))
            for _ in range(20)
        ]
        for caller in callers:
            caller.start()
        waiting.set()
        for caller in callers:
            caller.join(30)
        assert found == ["q: {text}"] * 20
    assert fetches == [MODEL]


@pytest.mark.parametrize("instruction", ["Query: ", "web search {query}", "onlyoneword"])
def test_an_instruction_that_would_be_misread_is_refused_at_construction(
    served: Hub, instruction: str
) -> None:
    with pytest.raises(InstructionError):
        Embedder(MODEL, query_instruction=instruction)
    assert served.requests == []


def test_a_task_needs_a_form_that_only_the_files_can_show(served: Hub) -> None:
    task = "Given a question, find its answer"
    with pytest.raises(InstructionError, match="in which form"):
        Embedder(MODEL, query_instruction=task).embed_query("a")
    served.files[PROMPTS] = {"prompts": {"query": f"Instruct: {task}\nQuery:"}}
    embedder = Embedder("owner/another", query_instruction=task)
    assert embedder.query_template == f"Instruct: {task}\nQuery:{{text}}"


def test_a_mirror_that_marks_no_commit_on_missing_files_is_asked_once_a_process(
    served: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = served.answer
    del served.files["tokenizer.json"]

    def unmarked(request: Request, connection: socket.socket) -> bytes:
        given = answer(request, connection)
        is_missing = b"EntryNotFound" in given
        return given.replace(b"X-Repo-Commit", b"X-Nothing") if is_missing else given

    with HttpServer(unmarked) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        assert Embedder(MODEL).query_template == "q: {text}"
        served.requests.clear()
        load_card(Settings.resolve(model=MODEL))
        assert served.requests == []


@pytest.mark.parametrize("package", ["langchain_emberd", "llama_index.embeddings.emberd"])
def test_the_frameworks_construct_without_the_hub_and_use_its_prompts(
    served: Hub, package: str
) -> None:
    made: Any
    if package == "langchain_emberd":
        from langchain_emberd import EmberdEmbeddings

        made = EmberdEmbeddings(model=MODEL)
    else:
        from llama_index.embeddings.emberd import EmberdEmbedding

        made = EmberdEmbedding(model_name=MODEL)
    assert served.requests == []
    assert made.query_instruction is None
    assert made.embedder.query_template == "q: {text}"
    again = type(made)(**{"model" if "lang" in package else "model_name": MODEL})
    assert again.query_instruction == "q: {text}", "the field shows it once it is known"

"""What the rerankers of both frameworks have in common: results, fields, copies, secrets."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import SecretStr, ValidationError

import checkpoints_made
from contract.rerankers import KINDS, aorder, order, scores_of
from emberd import (
    DEFAULT_RERANKER,
    TASKS,
    AuthenticationError,
    EmberdError,
    RejectedError,
    Reranker,
    ServerUnavailableError,
    Settings,
    TextTooLongError,
)
from emberd.prompts import rerank_frame
from fake_reranker import MODEL, FakeReranker

KEY = "sk-made-up"
SECRET = SecretStr(KEY)
NOWHERE = "http://127.0.0.1:9"
QUERY = "what\n is it?"
TEXTS = [f"document {number}" for number in range(40)]
ODD_TEXTS = ["", " \n\t", "a\nb\r\nc", "中文 🙂 עברית", "{text} %s {0}", "<|im_end|>"]
SETTINGS = (
    {field.name for field in dataclasses.fields(Settings)}
    - {"dimensions", "query_instruction", "document_instruction", "symmetric"}
    - {"server_dimensions", "show_progress", "cache"}
)


@pytest.fixture
def server() -> Iterator[FakeReranker]:
    with FakeReranker() as running:
        yield running


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


# ---------------------------------------------------------------- results


def test_texts_come_in_the_order_of_their_scores(kind: Any, server: FakeReranker) -> None:
    found = order(kind(model=MODEL, base_url=server.url), QUERY, TEXTS)
    by_prompt, frame = scores_of(server), rerank_frame(QUERY)
    expected = {text: by_prompt[text.join(frame)] for text in TEXTS}
    assert dict(found) == expected
    assert [score for _, score in found] == sorted(expected.values(), reverse=True)
    assert {type(score) for _, score in found} == {float}


def test_top_n_are_the_best_and_none_is_all(kind: Any, server: FakeReranker) -> None:
    every = kind(model=MODEL, base_url=server.url)
    assert every.top_n is None
    ranking = order(every, QUERY, TEXTS)
    assert len(ranking) == 40
    few = every.model_copy(update={"top_n": 5})
    assert order(few, QUERY, TEXTS) == ranking[:5]
    assert order(few, QUERY, TEXTS[:3]) == [pair for pair in ranking if pair[0] in TEXTS[:3]]


def test_none_replaces_the_default_of_a_subclass(kind: Any, server: FakeReranker) -> None:
    class Few(kind):  # type: ignore[misc]
        top_n: int | None = 2

    few = Few(model=MODEL, base_url=server.url)
    every = few.model_copy(update={"top_n": None})
    given = Few(model=MODEL, base_url=server.url, top_n=None)
    made = Few.from_reranker(few.reranker, top_n=None)
    for each in (every, given, made, given.model_copy(update={"batch_size": 3})):
        assert each.top_n is None
        assert len(order(each, QUERY, TEXTS[:3])) == 3
    assert len(order(few, QUERY, TEXTS[:3])) == 2


async def test_asynchronous_methods_give_the_same(kind: Any, server: FakeReranker) -> None:
    made = kind(model=MODEL, base_url=server.url, top_n=7)
    ranking = order(made, QUERY, TEXTS)
    assert await aorder(made, QUERY, TEXTS) == ranking
    both = await asyncio.gather(aorder(made, QUERY, TEXTS), aorder(made, "another", TEXTS))
    assert both[0] == ranking
    assert both[1] != ranking


def test_texts_of_every_shape_are_scored(kind: Any, server: FakeReranker) -> None:
    made = kind(model=MODEL, base_url=server.url)
    ranking = order(made, QUERY, ODD_TEXTS)
    # LlamaIndex strips the text of a node.
    shown = {text.strip() if kind is KINDS[1] else text for text in ODD_TEXTS}
    frame = rerank_frame(QUERY)
    assert {text.join(frame) for text in shown} <= set(scores_of(server))
    assert len(ranking) == len(ODD_TEXTS)


def test_nothing_to_rank_needs_no_server(kind: Any) -> None:
    made = kind(model=MODEL, base_url=NOWHERE)
    assert order(made, QUERY, []) == []
    assert asyncio.run(aorder(made, QUERY, [])) == []


@pytest.mark.parametrize("is_async", [False, True])
def test_errors_are_those_of_emberd(kind: Any, server: FakeReranker, is_async: bool) -> None:
    def rank(made: Any, texts: list[str]) -> Any:
        return asyncio.run(aorder(made, "q", texts)) if is_async else order(made, "q", texts)

    made = kind(model=MODEL, base_url=server.url)
    rank(made, ["warm"])
    with pytest.raises(TextTooLongError) as caught:
        rank(made, ["short", "long " * 2000, "short"])
    assert caught.value.index == 1
    assert rank(kind(model=MODEL, base_url=server.url, truncate=True), ["long " * 2000])
    server.refuses = "unreadable"
    with pytest.raises(RejectedError, match="cannot be read"):
        rank(made, ["readable", "unreadable"])
    with pytest.raises(ServerUnavailableError):
        rank(kind(model=MODEL, base_url=NOWHERE, timeout=1), ["x"])
    server.api_key = KEY
    with pytest.raises(AuthenticationError):
        rank(kind(model=MODEL, base_url=server.url), ["x"])


# ---------------------------------------------------------------- fields


def test_the_fields_are_the_settings_of_a_reranker(kind: Any) -> None:
    inherited = {"callback_manager"} & set(kind.model_fields)
    own = {"top_n", "instruction", *(["keep_retrieval_score"] if kind is KINDS[1] else [])}
    assert set(kind.model_fields) == SETTINGS | own | inherited


def test_the_defaults_are_those_of_emberd(kind: Any) -> None:
    made, plain = kind(), Settings()
    assert made.model == DEFAULT_RERANKER
    others = SETTINGS - {"model"}
    assert {name: getattr(made, name) for name in others} == {
        name: getattr(plain, name) for name in others
    }
    assert made.reranker.settings.model == DEFAULT_RERANKER


@pytest.mark.parametrize(
    ("given", "shown"),
    [(None, TASKS["web"]), ("code", "code"), ("Find the bug", "Find the bug")],
)
def test_the_instruction_in_use_is_a_field(kind: Any, given: str | None, shown: str) -> None:
    assert kind(instruction=given).instruction == shown


def test_the_default_instruction_of_the_model_is_a_field(kind: Any, tmp_path: Path) -> None:
    """A dictionary of the fields must give the same reranker; web search would be another one."""
    saved = {"model_type": "CrossEncoder", "default_prompt_name": "law", "prompts": {"law": "Find"}}
    folder = Path(checkpoints_made.write(tmp_path / "reranker"))
    checkpoints_made.write_json(folder / "config_sentence_transformers.json", saved)
    assert kind(model=str(folder)).instruction == "Find"


def test_a_blank_instruction_is_refused(kind: Any) -> None:
    with pytest.raises(ValidationError, match="instruction=''"):
        kind(instruction="")


def test_an_argument_overrides_the_variables_of_rerankers(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBERD_MODEL", "emberd/demo")
    monkeypatch.setenv("EMBERD_RERANK_MODEL", "Qwen/Qwen3-Reranker-8B")
    monkeypatch.setenv("EMBERD_RERANK_API_KEY", KEY)
    monkeypatch.setenv("EMBERD_MAX_CONCURRENCY", "3")
    made = kind(max_concurrency=2)
    assert (made.model, made.max_concurrency) == ("Qwen/Qwen3-Reranker-8B", 2)
    assert made.api_key == SECRET
    assert kind(model="Qwen/Qwen3-Reranker-0.6B").model == "Qwen/Qwen3-Reranker-0.6B"


def test_a_field_may_be_given_as_none_for_not_given(kind: Any) -> None:
    assert kind(batch_size=None, top_n=None).batch_size == 256
    assert kind(idle_timeout=None).idle_timeout is None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"model_name": "x"}, "it is called model here"),
        ({"top_k": 3}, "it is called top_n here"),
        ({"dimensions": 64}, "no field 'dimensions'"),
        ({"model": "Qwen/Qwen3-Embedding-4B"}, "a reranker is needed"),
        ({"top_n": 0}, "top_n"),
        ({"top_n": True}, "top_n"),
        ({"instruction": "Instruct: Find x\nQuery:"}, "only the task"),
        ({"instruction": 5}, "must be a string"),
        ({"base_url": "localhost:30000"}, "http://127.0.0.1:30000/v1"),
        ({"truncate": "no"}, "must be True or False"),
        ({"timeout": 0}, "greater than 0"),
    ],
)
def test_invalid_values_are_refused_at_construction(
    kind: Any, given: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        kind(**{"api_key": KEY, **given})
    assert told in str(caught.value)
    assert KEY not in f"{caught.value} {caught.value.errors()} {caught.value.json()}"


def test_a_setting_cannot_be_assigned(kind: Any) -> None:
    made = kind()
    for name in {*SETTINGS, "instruction"}:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(made, name, None)


def test_a_default_of_a_subclass_is_between_arguments_and_the_environment(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = type(
        "Small",
        (kind,),
        {
            "__annotations__": {"model": str, "instruction": str | None, "label": str},
            "__module__": __name__,
            "model": "Qwen/Qwen3-Reranker-0.6B",
            "instruction": "code",
            "label": "",
        },
    )
    monkeypatch.setenv("EMBERD_RERANK_MODEL", "Qwen/Qwen3-Reranker-8B")
    made = small(label="mine")
    assert (made.model, made.instruction, made.label) == (
        "Qwen/Qwen3-Reranker-0.6B",
        "code",
        "mine",
    )
    assert made.reranker.instruction == "code"
    assert small(instruction="facts").reranker.instruction == "facts"
    assert made.model_copy(update={"instruction": "facts"}).label == "mine"


# ---------------------------------------------------------------- copies and pickles


def test_a_copy_with_an_update_is_checked_and_keeps_the_rest(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = kind(model=MODEL, api_key=SECRET, idle_timeout=None, instruction="code", top_n=5)
    monkeypatch.setenv("EMBERD_RERANK_MODEL", DEFAULT_RERANKER)
    monkeypatch.setenv("EMBERD_TRUNCATE", "1")
    changed = made.model_copy(update={"batch_size": 7})
    assert (changed.model, changed.instruction, changed.top_n) == (MODEL, "code", 5)
    assert (changed.idle_timeout, changed.batch_size, changed.truncate) == (None, 7, False)
    assert changed.reranker.settings.batch_size == 7
    assert changed.reranker.settings.api_key == KEY
    assert made.model_copy(update={"instruction": "facts"}).reranker.instruction == "facts"
    usual = made.model_copy(update={"instruction": None})
    # Its default is in files that the first use fetches.
    assert (usual.instruction, usual.reranker.instruction) == (None, None)
    for wrong in ({"batch_size": 0}, {"top_n": 0}, {"dimensions": 64}):
        with pytest.raises(ValidationError):
            made.model_copy(update=wrong)


@pytest.mark.parametrize(
    "how", [copy.copy, copy.deepcopy, "model_copy"], ids=["copy", "deepcopy", "model_copy"]
)
def test_a_copy_uses_the_same_connections(kind: Any, how: Any) -> None:
    made = kind(api_key=SECRET)
    twin = made.model_copy() if how == "model_copy" else how(made)
    assert twin is not made
    assert twin == made
    assert twin.reranker is made.reranker
    assert twin.api_key == made.api_key


def test_objects_of_equal_settings_are_equal(kind: Any) -> None:
    one, same = (kind(top_n=5, api_key=SECRET) for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    assert one != kind(top_n=4, api_key=SECRET)
    assert one != kind(top_n=5, api_key=SECRET, instruction="code")
    assert one != kind(top_n=5)
    assert one != "another thing"


def test_a_pickle_contains_every_setting_but_the_key(
    kind: Any, server: FakeReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.api_key = KEY
    made = kind(model=MODEL, base_url=server.url, api_key=SECRET, top_n=3, instruction="code")
    ranking = order(made, QUERY, TEXTS)
    packed = pickle.dumps(made)
    assert KEY.encode() not in packed
    monkeypatch.setenv("EMBERD_TIMEOUT", "64")
    monkeypatch.setenv("EMBERD_API_KEY", "of-the-embedder")
    back = pickle.loads(packed)
    assert back.model_dump() == made.model_dump()
    assert back.api_key is None
    with pytest.raises(EmberdError, match="EMBERD_RERANK_API_KEY"):
        order(back, QUERY, TEXTS)
    monkeypatch.setenv("EMBERD_RERANK_API_KEY", KEY)
    again = pickle.loads(packed)
    assert again.api_key == SECRET
    assert order(again, QUERY, TEXTS) == ranking


def test_the_key_is_in_no_text(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    made = kind(api_key=SECRET, base_url=NOWHERE)
    shown = [
        repr(made),
        str(made),
        repr(made.reranker),
        repr(made.model_dump()),
        made.model_dump_json(),
        json.dumps(kind.model_json_schema()),
        str(pickle.dumps(made.model_dump())),
        caplog.text,
    ]
    assert [text for text in shown if KEY in text] == []


def test_an_object_from_a_reranker_and_its_copy_use_its_client(
    kind: Any, server: FakeReranker
) -> None:
    """As with a proxy that requires custom headers."""
    client = openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="k", default_headers={"X-Team": "search"}
    )
    made = kind.from_reranker(Reranker(MODEL, client=client, instruction="code"), top_n=2)
    assert (made.model, made.instruction, made.top_n) == (MODEL, "code", 2)
    order(made, QUERY, TEXTS)
    order(made.model_copy(update={"instruction": "facts"}), QUERY, TEXTS)
    sent = [items[0] for items in server.scored]
    assert sum(TASKS["code"] in text for text in sent) == 1
    assert sum(TASKS["facts"] in text for text in sent) == 1
    assert {request.headers.get("x-team") for request in server.requests} == {"search"}
    client.close()


def test_a_setting_together_with_a_reranker_is_an_error(kind: Any) -> None:
    with pytest.raises(ValidationError, match="instruction is given together with"):
        kind.from_reranker(Reranker(MODEL), instruction="code")
    with pytest.raises(ValidationError, match="'http://h' is not an emberd.Reranker"):
        kind.from_reranker("http://h")


def test_the_endpoint_is_that_of_the_server(kind: Any, server: FakeReranker) -> None:
    assert kind(model=MODEL, base_url=server.url).endpoint().url == server.url

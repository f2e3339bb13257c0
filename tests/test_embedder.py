"""The embedder: vectors, a base URL, dimensions, construction."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Iterator
from enum import Enum
from typing import Any

import numpy as np
import pytest

import embedders
import emberd
from emberd import Embedder, Endpoint, model_card
from emberd.client import clients
from emberd.errors import (
    AuthenticationError,
    BadReplyError,
    IdentityError,
    InstructionError,
    RejectedError,
    RequestTimeoutError,
    ServerMismatchError,
    ServerUnavailableError,
    SettingError,
    TextError,
)
from emberd.system import listeners
from fake_server import MODEL, QWEN, FakeServer, vector_of, vectors_of

TASK = "Given a web search query, retrieve relevant passages that answer the query"
QUERY = f"Instruct: {TASK}\nQuery:"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def embedder(server: FakeServer) -> Iterator[Embedder]:
    made = Embedder(MODEL, base_url=server.url, timeout=5, batch_size=4)
    yield made
    made.close()


@pytest.mark.parametrize("twin", ["threads", "tasks"])
def test_a_client_that_ensure_made_reads_no_files_for_a_query(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, twin: str
) -> None:
    embedder = Embedder(MODEL, base_url=server.url)
    if twin == "threads":
        embedder.ensure()
    else:
        asyncio.run(embedder.aensure())
    embedders.embed(embedder, twin, ["one"])
    monkeypatch.delattr(model_card, "describe")
    assert embedders.embed(embedder, twin, ["two"]).shape == (1, 16)


def test_documents_and_queries_get_the_templates_of_their_role() -> None:
    with FakeServer(model=QWEN, dimensions=1024, context_tokens=32768) as server:
        embedder = Embedder(QWEN, base_url=server.url)
        documents = embedder.embed_documents(["a", "", "b"])
        assert (documents == vectors_of(["a", "", "b"], 1024)).all()
        assert (embedder.embed_query("a") == vector_of(f"{QUERY}a", 1024)).all()
        queries = embedder.embed_queries(["a", ""])
        assert (queries == vectors_of([f"{QUERY}a", QUERY], 1024)).all()
        embedder.close()


def test_shapes_and_dtype_are_those_of_the_interface(embedder: Embedder) -> None:
    assert embedder.embed_documents(["a", "b"]).shape == (2, 16)
    assert embedder.embed_queries(["a"]).shape == (1, 16)
    assert embedder.embed_query("a").shape == (16,)
    assert embedder.embed_query("a").dtype == np.float32


async def test_asynchronous_methods_give_the_same_vectors(server: FakeServer) -> None:
    embedder = Embedder(MODEL, base_url=server.url)
    assert (await embedder.aembed_documents(["a", "b"]) == vectors_of(["a", "b"])).all()
    assert (await embedder.aembed_queries(["a", "b"]) == vectors_of(["a", "b"])).all()
    assert (await embedder.aembed_query("a") == vector_of("a")).all()
    assert (await embedder.aensure()).endpoint.url == server.url
    await embedder.aclose()


def test_every_synchronous_method_has_an_asynchronous_twin() -> None:
    methods = {
        name: inspect.signature(method)
        for name, method in inspect.getmembers(Embedder, inspect.isfunction)
        if not name.startswith("_")
        and name not in {"endpoint", "using", "replace", "check_identity"}
    }
    for name, signature in methods.items():
        is_twin = name.startswith(("ae", "ai")) or name == "aclose"
        twin = methods[name.removeprefix("a") if is_twin else f"a{name}"]
        assert list(twin.parameters) == list(signature.parameters), name
        if "iter" not in name:  # whose texts may be awaited too
            assert twin == signature, name


@pytest.mark.parametrize("none", [[], (), iter([])])
def test_no_texts_need_no_server(none: Any) -> None:
    embedder = Embedder(QWEN, base_url="http://127.0.0.1:9", dimensions=64)
    assert embedder.embed_documents(none).shape == (0, 64)


def test_an_error_names_the_callers_text(embedder: Embedder, server: FakeServer) -> None:
    with pytest.raises(TextError, match="Text 1 is of type int"):
        embedder.embed_documents(["a", 3])  # type: ignore[list-item]
    with pytest.raises(TextError, match="not a list of texts"):
        embedder.embed_documents("alone")
    for shown in (False, True):
        embedder = Embedder(MODEL, base_url=server.url, show_progress=shown)
        with pytest.raises(TextError, match="not a list of texts"):
            embedder.embed_documents(None)  # type: ignore[arg-type]
    assert server.requests == []


class Text(str, Enum):  # noqa: UP042 - a StrEnum is formatted as its text
    """Texts as an application may declare them."""

    ONE = "text one"
    WEB = "web"


def test_a_subclass_of_str_is_the_text_that_it_holds(server: FakeServer) -> None:
    templates = {"query_instruction": "Q: {text}", "document_instruction": ""}
    embedder = Embedder(MODEL, base_url=server.url, **templates)  # type: ignore[arg-type]
    given = [Text.ONE, np.str_("text two")]
    assert (embedder.embed_documents(given) == vectors_of(["text one", "text two"])).all()
    assert (embedder.embed_query(Text.ONE) == vector_of("Q: text one")).all()
    settings = Embedder(QWEN, query_instruction=Text.WEB).settings
    assert settings == Embedder(QWEN, query_instruction="web").settings
    assert type(settings.query_instruction) is str


async def test_texts_of_an_asynchronous_iterable_are_an_error_where_a_list_is_needed(
    embedder: Embedder,
) -> None:
    async def texts() -> AsyncIterator[str]:
        yield "a"

    given: Any = texts()
    with pytest.raises(TextError):
        embedder.embed_documents(given)
    with pytest.raises(TextError):
        list(embedder.iter_documents(given))
    with pytest.raises(TextError):
        await embedder.aembed_documents(given)
    assert len([each async for each in embedder.aiter_documents(given)]) == 1


def test_an_instruction_that_cannot_be_encoded_is_refused_at_construction() -> None:
    for instruction in ("find \ud83d", "\ud83d {text}"):
        with pytest.raises(InstructionError):
            Embedder(QWEN, query_instruction=instruction)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("missing", BadReplyError),
        ("doubled", BadReplyError),
        ("unindexed", BadReplyError),
        ("short", BadReplyError),
        ("nan", BadReplyError),
        ("html", BadReplyError),
        ("cut", BadReplyError),
        ("long_norm", BadReplyError),
        ("hang", RequestTimeoutError),
        ("drip", RequestTimeoutError),
        ("reset_late", ServerUnavailableError),
    ],
)
@pytest.mark.parametrize("twin", ["threads", "tasks"])
def test_a_wrong_reply_is_a_typed_error_and_never_a_vector(
    server: FakeServer, fault: str, kind: type[Exception], twin: str
) -> None:
    embedder = Embedder(MODEL, base_url=server.url, timeout=0.3)
    embedder.ensure()
    server.fault = fault
    with pytest.raises(kind):
        embedders.embed(embedder, twin, ["a", "b", "c"])
    embedder.close()


def test_the_first_use_verifies_once_and_construction_does_nothing(server: FakeServer) -> None:
    embedder = Embedder(MODEL, base_url=f"{server.url}/v1")
    assert server.requests == []
    embedder.embed_query("a")
    embedder.embed_query("b")
    assert len(server.to("/v1/models")) == 1
    here = listeners.find(server.url)
    assert embedder.endpoint() == Endpoint(server.url, MODEL, 16, 1000, None, "sglang", here)
    assert embedder.ensure().origin == "given"
    embedder.close()


def test_another_model_at_the_base_url_is_a_mismatch(server: FakeServer) -> None:
    with pytest.raises(ServerMismatchError, match="serves test/model, but Qwen"):
        Embedder(QWEN, base_url=server.url).embed_query("a")


def test_nobody_at_the_base_url_starts_nothing() -> None:
    with pytest.raises(ServerUnavailableError, match="No response from http://127.0.0.1:9"):
        Embedder(MODEL, base_url="http://127.0.0.1:9").embed_query("a")


def test_a_given_server_that_goes_away_is_an_error(embedder: Embedder, server: FakeServer) -> None:
    embedder.embed_query("a")
    server.die()
    with pytest.raises(ServerUnavailableError, match="No response"):
        embedder.embed_query("b")


def test_a_wrong_key_is_an_authentication_error(server: FakeServer) -> None:
    server.api_key = "right"
    with pytest.raises(AuthenticationError) as caught:
        Embedder(MODEL, base_url=server.url, api_key="wrong-secret").embed_query("a")
    assert "secret" not in str(caught.value)
    right = Embedder(MODEL, base_url=server.url, api_key="right")
    assert right.embed_query("a").shape == (16,)
    right.close()


@pytest.mark.parametrize("twin", ["threads", "tasks"])
def test_a_given_server_that_was_swapped_for_another_model_is_a_mismatch(
    server: FakeServer, twin: str
) -> None:
    embedder = Embedder(MODEL, base_url=server.url)
    embedders.embed(embedder, twin, ["a"])
    server.named = "other/model"
    with pytest.raises(ServerMismatchError, match="results of test/model before .* other/model"):
        embedders.embed(embedder, twin, ["a"])
    server.named = None
    assert (embedders.embed(embedder, twin, ["a"]) == vectors_of(["a"])).all()
    embedder.close()


def test_cutting_an_untrained_model_warns_once_at_first_use(server: FakeServer) -> None:
    embedder = Embedder(MODEL, base_url=server.url, dimensions=4)
    with pytest.warns(UserWarning, match="test/model was not trained so that"):
        embedder.embed_query("a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert embedder.embed_query("a").shape == (4,)
        assert asyncio.run(embedder.aembed_query("a")).shape == (4,)
    embedder.close()


@pytest.mark.parametrize("dimensions", [32, 1024, None])
def test_cutting_a_trained_model_does_not_warn(dimensions: int | None) -> None:
    with FakeServer(model=QWEN, dimensions=1024) as server:
        embedder = Embedder(QWEN, base_url=server.url, dimensions=dimensions)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert embedder.embed_query("a").shape == (dimensions or 1024,)
        embedder.close()


def test_an_embedder_knows_its_own_index_and_no_other() -> None:
    embedder = Embedder(MODEL, dimensions=8, query_instruction="<{text}>", api_key="secret")
    embedder.check_identity(embedder.identity)
    assert Embedder(MODEL, batch_size=3, timeout=9).identity == Embedder(MODEL).identity
    with pytest.raises(IdentityError):
        embedder.check_identity(Embedder(MODEL).identity)


def test_construction_checks_everything() -> None:
    with pytest.raises(InstructionError):
        Embedder(query_instruction="Instruct: mine\nQuery:")
    with pytest.raises(SettingError, match="dimensions=31"):
        Embedder(dimensions=31)
    with pytest.raises(TypeError):
        Embedder(batchsize=3)  # type: ignore[call-arg]


def test_progress_is_shown_where_it_is_wanted(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"text {i}" for i in range(20)]
    shown = Embedder(MODEL, base_url=server.url, show_progress=True)
    assert (shown.embed_documents(iter(texts)) == vectors_of(texts)).all()
    shown.close()
    output = capsys.readouterr()
    assert "embedding" in output.err
    assert output.out == ""


def test_rejections_reach_the_caller(embedder: Embedder, server: FakeServer) -> None:
    embedder.ensure()
    server.answer_first(400)
    with pytest.raises(RejectedError):
        embedder.embed_query("a")


_PUBLIC = """
import sys, emberd
late = {'numpy', 'openai', 'filelock', 'psutil', 'rich', 'emberd.manager', 'emberd.client'}
print(sorted(late & {*sys.modules}))
emberd.Embedder()
print(sorted({'numpy', 'openai', 'filelock', 'psutil', 'rich'} & {*sys.modules}))
"""


def test_importing_and_constructing_import_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PUBLIC],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert (done.stdout, done.stderr) == ("[]\n[]\n", "")


def test_public_names_exist_and_others_do_not() -> None:
    for name in emberd.__all__:
        assert getattr(emberd, name) is not None
        assert name in dir(emberd)
    assert emberd.Embedder is Embedder
    assert emberd.Endpoint is Endpoint
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = emberd.Nothing


@pytest.mark.parametrize("kind", [clients.Client, clients.AsyncClient])
async def test_client_made_while_the_settings_are_completed_has_them(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another thread, or another task."""
    embedder = Embedder(QWEN, base_url="http://127.0.0.1:9")
    made = kind.__init__

    def slow(self: Any, *args: Any, **settings: Any) -> None:
        made(self, *args, **settings)
        embedder._check()

    monkeypatch.setattr(kind, "__init__", slow)
    is_async = kind is clients.AsyncClient
    client = await embedder._aclient() if is_async else embedder._client()
    assert client._settings is embedder.settings

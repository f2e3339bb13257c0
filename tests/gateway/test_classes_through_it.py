"""emberd's own classes with the gateway as their server: the vectors and errors of a direct one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from agents.recipes import QWEN_TEMPLATE
from emberd import (
    Embedder,
    Reranker,
    ServerMismatchError,
    ServerUnavailableError,
    TextTooLongError,
)
from emberd.client.verify import verify
from emberd.endpoint import Endpoint
from emberd.manager import Server, ServerManager
from emberd.settings import ServerSpec
from emberd.system.listeners import Listener
from fake_reranker import MODEL as RERANKER
from fake_server import QWEN, FakeServer
from gateway.conftest import Faked
from gateways import Running, serving
from http_server import HttpServer, Request, models, reply
from langchain_emberd import EmberdEmbeddings
from llama_index.embeddings.emberd import EmberdEmbedding

TEXTS = ["a doc", "  white space  ", "{text}", "<|endoftext|>", "x?task=code", "", " "]
TOO_LONG = "x" * 2000  # the fake server takes 1,000 tokens


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer(model=QWEN, dimensions=1024) as server:
        yield server


@pytest.fixture(scope="module")
def changed(server: FakeServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A gateway whose own settings must not change the vectors of emberd's classes."""
    settings = {
        "EMBERD_BASE_URL": server.url,
        "EMBERD_MODEL": QWEN,
        "EMBERD_TRUNCATE": "1",
        "EMBERD_SYMMETRIC": "1",
        "EMBERD_QUERY_INSTRUCTION": "clustering",
    }
    with serving(tmp_path_factory.mktemp("changed") / "home", environment=settings) as running:
        yield running


def _through(gateway: Running, **settings: Any) -> dict[str, Any]:
    return {"base_url": f"{gateway.url}/v1", "api_key": gateway.key, **settings}


@pytest.mark.parametrize(
    "settings", [{}, {"dimensions": 256}, {"query_instruction": "code"}], ids=str
)
def test_all_texts_have_the_vectors_of_the_server(
    changed: Running, server: FakeServer, settings: dict[str, Any]
) -> None:
    through = Embedder(QWEN, **_through(changed, **settings))
    direct = Embedder(QWEN, base_url=server.url, **settings)
    np.testing.assert_array_equal(through.embed_documents(TEXTS), direct.embed_documents(TEXTS))
    query = direct.embed_query("a query")
    np.testing.assert_array_equal(through.embed_query("a query"), query)
    np.testing.assert_array_equal(asyncio.run(through.aembed_query("a query")), query)
    assert through.identity == direct.identity


def test_the_classes_of_both_frameworks_have_them_too(changed: Running, server: FakeServer) -> None:
    query = Embedder(QWEN, base_url=server.url).embed_query("a query")
    chain = EmberdEmbeddings(model=QWEN, **_through(changed))
    index = EmberdEmbedding(model_name=QWEN, **_through(changed))
    np.testing.assert_array_equal(np.asarray(chain.embed_query("a query"), np.float32), query)
    np.testing.assert_array_equal(
        np.asarray(index.get_query_embedding("a query"), np.float32), query
    )


@pytest.mark.parametrize("truncate", [False, True])
def test_a_text_that_is_too_long_is_never_cut_by_the_gateway(
    changed: Running, truncate: bool
) -> None:
    """Only the class knows where its template ends, and whether cutting is wanted."""
    embedder = Embedder(QWEN, **_through(changed, truncate=truncate))
    with pytest.raises(TextTooLongError) as raised:
        embedder.embed_documents(["short", TOO_LONG])
    assert (raised.value.index, raised.value.tokens, raised.value.limit) == (1, 2001, 999)


def test_a_reranker_is_referred_to_the_route_of_the_gateway(faked: Faked) -> None:
    reranker = Reranker(RERANKER, **_through(faked.running))
    with pytest.raises(ServerMismatchError, match="/v1/rerank"):
        reranker.scores("a query", ["a document"])


@contextlib.contextmanager
def _proxy(gateway: Running, name: str) -> Iterator[HttpServer]:
    """A proxy that hides the gateway, and asks it for another name of the model."""

    def answer(request: Request, connection: socket.socket) -> bytes:
        if request.path == "/v1/models":
            return reply(200, {"object": "list", "data": [models(QWEN, None, "openai")["data"][0]]})
        if request.path != "/v1/embeddings":
            return reply(404, {"detail": "Not Found"})
        found = gateway.post(**{**request.body, "model": name})
        return reply(found.status_code, {**found.json(), "model": QWEN})

    with HttpServer(answer) as server:
        yield server


@pytest.mark.parametrize("suffix", ["", ":query"])
def test_a_proxy_that_hides_prompts_of_the_gateway_is_refused(
    changed: Running, suffix: str
) -> None:
    with (
        _proxy(changed, QWEN + suffix) as proxy,
        pytest.raises(ServerMismatchError, match="base_url"),
    ):
        Embedder(QWEN, base_url=proxy.url).embed_query("a query")


def test_a_proxy_that_asks_for_texts_as_they_are_gives_the_vectors_of_the_server(
    changed: Running, server: FakeServer
) -> None:
    direct = Embedder(QWEN, base_url=server.url)
    with _proxy(changed, QWEN + ":query?task={text}&truncate=false") as proxy:
        through = Embedder(QWEN, base_url=proxy.url)
        np.testing.assert_array_equal(
            through.embed_documents(TEXTS[:5]), direct.embed_documents(TEXTS[:5])
        )
        np.testing.assert_array_equal(through.embed_query("a query"), direct.embed_query("a query"))


def test_a_proxy_in_front_of_a_name_without_a_prompt_is_used(faked: Faked) -> None:
    """Qwen's template of documents adds nothing, so no text gets a prompt twice."""
    before = len(faked.inputs())
    with _proxy(faked.running, QWEN) as proxy:
        Embedder(QWEN, base_url=proxy.url).embed_query("behind a proxy")
    (sent,) = [text for text in faked.inputs()[before:] if "behind a proxy" in text]
    assert sent == QWEN_TEMPLATE.format(text="behind a proxy")


_START_S = 3.0


class _StartsSlowly(FakeServer):
    """Does not answer until some time after the first request, which starts it."""

    def _models(self, request: Request, connection: socket.socket) -> bytes:
        if len(self.requests) == 1:
            time.sleep(_START_S)
        return super()._models(request, connection)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Running]:
    """A gateway that was not used yet, and whose server starts more slowly than a request ends."""
    with _StartsSlowly(model=QWEN, dimensions=1024) as server:
        environment = {"EMBERD_BASE_URL": server.url, "EMBERD_MODEL": QWEN}
        with serving(tmp_path / "home", environment=environment) as running:
            yield running


def _impatient(home: Path) -> ServerManager:
    """A manager whose verification takes one second at most."""
    return ServerManager(home, verify=_verify_at_once)


def _verify_at_once(
    url: str,
    api_key: str | None,
    spec: ServerSpec,
    listener: Listener | None,
    /,
    *,
    batch_size: int | None = None,
) -> Endpoint:
    return verify(url, api_key, spec, listener, timeout_s=1.0, batch_size=batch_size)


def test_the_start_of_a_server_behind_the_gateway_is_waited_for(
    slow: Running, tmp_path: Path
) -> None:
    began_s = time.monotonic()
    spec = ServerSpec(QWEN)
    server = _impatient(tmp_path).ensure(spec, base_url=slow.url, api_key=slow.key)
    assert server.endpoint.server == "emberd-gateway"
    assert time.monotonic() - began_s > _START_S


class _StartsForEver(HttpServer):
    """A gateway whose server does not get ready.

    Args:
        says_so: Whether it says so at once; otherwise it does not answer.
    """

    def __init__(self, *, says_so: bool) -> None:
        super().__init__(self._answer)
        self.says_so = says_so
        self.asked = 0

    def _answer(self, request: Request, connection: socket.socket) -> bytes:
        if request.path == "/v1/models":
            return reply(200, models(QWEN, 1000, "emberd-gateway"))
        if request.path != "/v1/embeddings":
            return reply(404, {"detail": "Not Found"})
        self.asked += 1
        if not self.says_so:
            connection.recv(1)  # until the client gives up
        error = {"message": "It is starting.", "type": "api_error", "code": "server_starting"}
        return reply(503, {"error": error})


def _ensure(given: str, url: str, start_timeout: float) -> None:
    """Do the first use of a class with ``base_url``, or with a client of the user."""
    if given == "base_url":
        Embedder(QWEN, base_url=url, start_timeout=start_timeout).ensure()
    elif given == "client":
        with openai.OpenAI(base_url=f"{url}/v1", api_key="k", timeout=100) as client:
            Embedder(QWEN, client=client, start_timeout=start_timeout).ensure()
    else:
        asyncio.run(_aensure(url, start_timeout))


async def _aensure(url: str, start_timeout: float) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k", timeout=100) as client:
        await Embedder(QWEN, async_client=client, start_timeout=start_timeout).aensure()


@pytest.mark.parametrize("given", ["base_url", "client", "async_client"])
@pytest.mark.parametrize("says_so", [False, True], ids=["silent", "busy"])
def test_it_is_waited_for_no_longer_than_start_timeout_and_asked_a_few_times(
    given: str, says_so: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBERD_HOME", str(tmp_path))
    began_s = time.monotonic()
    with _StartsForEver(says_so=says_so) as gateway:
        with pytest.raises(ServerUnavailableError) as caught:
            _ensure(given, gateway.url, start_timeout=4)
        assert caught.value.is_starting
        assert time.monotonic() - began_s < 20  # a verification may take a minute
        assert 1 <= gateway.asked <= 4


def test_it_is_waited_for_through_a_given_client(slow: Running) -> None:
    with openai.OpenAI(base_url=f"{slow.url}/v1", api_key=slow.key, timeout=100) as client:
        embedder = Embedder(QWEN, client=client, timeout=1)
        assert embedder.endpoint().server == "emberd-gateway"


def test_it_is_waited_for_through_a_given_asynchronous_client(slow: Running) -> None:
    async def ensure() -> Server:
        url = f"{slow.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=slow.key, timeout=100) as client:
            return await Embedder(QWEN, async_client=client, timeout=1).aensure()

    assert asyncio.run(ensure()).endpoint.server == "emberd-gateway"


def test_another_server_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    with FakeServer(model=QWEN, dimensions=1024, fault="hang") as server:
        with pytest.raises(ServerUnavailableError) as caught:
            _impatient(tmp_path).ensure(ServerSpec(QWEN), base_url=server.url)
    assert not caught.value.is_starting

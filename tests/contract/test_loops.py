"""What both frameworks' objects do to event loops, and event loops to them."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

import waiting
from contract.frameworks import BOTH, Framework
from fake_server import QWEN, FakeServer, vector_of, vectors_of
from http_server import Request
from managed import same

_DIMENSIONS = 1024  # of Qwen3-Embedding-0.6B
_LOOPS = 4
_PATIENCE_S = 5.0

One = Callable[[str], Coroutine[Any, Any, list[float]]]
Batch = Callable[[list[str]], Coroutine[Any, Any, list[list[float]]]]


class Gated(FakeServer):
    """Embeds only when it is let: ``let_go`` says of each request whether it was in time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.gate = threading.Event()
        self.let_go: list[bool] = []

    def _embeddings(self, request: Request, connection: socket.socket) -> bytes:
        self.let_go.append(self.gate.wait(_PATIENCE_S))
        return super()._embeddings(request, connection)


@pytest.fixture
def server() -> Iterator[Gated]:
    with Gated(model=QWEN, dimensions=_DIMENSIONS) as running:
        yield running


@pytest.fixture(params=BOTH, ids=lambda made: made.__name__)
def framework(request: pytest.FixtureRequest, server: Gated) -> Framework:
    """One that has found its server, and whose queries are embedded as they are."""
    made: Framework = request.param(model=QWEN, base_url=server.url, query_instruction="")
    server.gate.set()
    made.embedder.ensure()
    server.requests.clear()
    return made


@pytest.mark.parametrize("role", ["documents", "query"])
async def test_other_tasks_go_on_while_a_call_waits_for_its_server(
    framework: Framework, server: Gated, role: str
) -> None:
    """The server answers once another task of the same loop lets it."""
    server.gate.clear()
    server.let_go.clear()
    embed = framework.aquery if role == "query" else _one_of(framework.adocuments)
    call = asyncio.create_task(embed("a"))
    await asyncio.to_thread(waiting.until, lambda: server.embedded)
    server.gate.set()
    assert same(await call, vector_of("a", _DIMENSIONS))
    assert server.let_go == [True]


def _one_of(embed: Batch) -> One:
    async def one(text: str) -> list[float]:
        return (await embed([text]))[0]

    return one


def test_one_object_serves_one_loop_after_another(framework: Framework) -> None:
    for text in ("a", "b", "c"):
        documents = asyncio.run(framework.adocuments([text]))
        assert same(documents, vectors_of([text], _DIMENSIONS))
        assert same(asyncio.run(framework.aquery(text)), documents[0])


def test_one_object_serves_several_loops_at_once(framework: Framework, server: Gated) -> None:
    server.gate.clear()
    server.let_go.clear()
    answers: dict[str, list[list[float]]] = {}

    def work(text: str) -> None:
        answers[text] = asyncio.run(framework.adocuments([text]))

    threads = [threading.Thread(target=work, args=(f"loop {n}",)) for n in range(_LOOPS)]
    for thread in threads:
        thread.start()
    waiting.until(lambda: len(server.embedded) == _LOOPS)  # each has a request in flight
    server.gate.set()
    for thread in threads:
        thread.join()
    assert server.let_go == [True] * _LOOPS
    for text, vectors in answers.items():
        assert same(vectors, vectors_of([text], _DIMENSIONS))
    assert len(answers) == _LOOPS

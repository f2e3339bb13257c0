"""Objects of both frameworks do not block an event loop, and work in several loops."""

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
_GATE_TIMEOUT_S = 5.0

One = Callable[[str], Coroutine[Any, Any, list[float]]]
Batch = Callable[[list[str]], Coroutine[Any, Any, list[list[float]]]]


class Gated(FakeServer):
    """Embeds while its gate is open; ``in_time`` says per request whether it opened in time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.gate = threading.Event()
        self.in_time: list[bool] = []

    def _embeddings(self, request: Request, connection: socket.socket) -> bytes:
        self.in_time.append(self.gate.wait(_GATE_TIMEOUT_S))
        return super()._embeddings(request, connection)


@pytest.fixture
def server() -> Iterator[Gated]:
    with Gated(model=QWEN, dimensions=_DIMENSIONS) as running:
        yield running


@pytest.fixture(params=BOTH, ids=lambda made: made.__name__)
def framework(request: pytest.FixtureRequest, server: Gated) -> Framework:
    """One that has found its server, and embeds queries without an instruction."""
    made: Framework = request.param(model=QWEN, base_url=server.url, query_instruction="")
    server.gate.set()
    made.embedder.ensure()
    server.requests.clear()
    return made


@pytest.mark.parametrize("role", ["documents", "query"])
async def test_other_tasks_run_while_a_call_waits_for_its_server(
    framework: Framework, server: Gated, role: str
) -> None:
    """The server answers only after another task of the same loop opens its gate."""
    server.gate.clear()
    server.in_time.clear()
    embed = framework.aquery if role == "query" else _one_of(framework.adocuments)
    call = asyncio.create_task(embed("a"))
    await asyncio.to_thread(waiting.until, lambda: server.embedded)
    server.gate.set()
    assert same(await call, vector_of("a", _DIMENSIONS))
    assert server.in_time == [True]


def _one_of(embed: Batch) -> One:
    async def one(text: str) -> list[float]:
        return (await embed([text]))[0]

    return one


def test_one_object_works_in_successive_event_loops(framework: Framework) -> None:
    for text in ("a", "b", "c"):
        documents = asyncio.run(framework.adocuments([text]))
        assert same(documents, vectors_of([text], _DIMENSIONS))
        assert same(asyncio.run(framework.aquery(text)), documents[0])


def test_one_object_works_in_concurrent_event_loops(framework: Framework, server: Gated) -> None:
    server.gate.clear()
    server.in_time.clear()
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
    assert server.in_time == [True] * _LOOPS
    for text, vectors in answers.items():
        assert same(vectors, vectors_of([text], _DIMENSIONS))
    assert len(answers) == _LOOPS

"""Whatever a server sends, and however slowly, a call ends in time with a vector or an error."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import ipaddress
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import openai  # noqa: F401 - imported by the first request, whose memory is measured
import psutil
import pytest

import waiting
from embedding import WITH_REMOTE, Kind, embed
from emberd import probe
from emberd.client import wire
from emberd.client.clients import Client
from emberd.client.event_loops import finish
from emberd.client.loopback import LoopbackSession
from emberd.client.transport import AsyncTransport, Session
from emberd.client.verify import verify
from emberd.client.wire import Reply, Request, TransportError
from emberd.endpoint import Endpoint
from emberd.errors import EmberdError, RequestTimeoutError
from emberd.settings import ServerSpec, Settings
from emberd.system import listeners
from emberd.system.bounded_http import bounded
from fake_server import MODEL, FakeServer, vector_of
from http_server import Answer, HttpServer, drip, reply
from http_server import Request as Asked

# Generous: what is not bounded takes for ever here.
_BOUND_S: Final = 20.0
_STUCK_S: Final = 30.0
_TIMEOUT_S: Final = 0.5
_MOST_BYTES: Final = 150 << 20
_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


def _then_drips(start: bytes, piece: bytes = b"x") -> Answer:
    def answer(_: Asked, connection: socket.socket) -> bytes:
        connection.sendall(start)
        drip(connection, itertools.repeat(piece))
        raise AssertionError

    return answer


def _then_floods(start: bytes, piece: bytes) -> Answer:
    def answer(_: Asked, connection: socket.socket) -> bytes:
        connection.sendall(start)
        while True:
            connection.sendall(piece)

    return answer


def _sends(content: bytes) -> Answer:
    return lambda request, connection: content


_GZIP: Final = {"content-encoding": "gzip"}
_BOMB: Final = gzip.compress(bytes(300 << 20), 1)

HOSTILE: Final[dict[str, Answer]] = {
    "drips its head": _then_drips(b"HTTP/1.1 200 OK\r\nx-a: "),
    "drips its body": _then_drips(_HEAD + b"content-length: 1000000\r\n\r\n"),
    "drips an error": _then_drips(b"HTTP/1.1 500 No\r\ncontent-length: 1000000\r\n\r\n"),
    "drips chunks": _then_drips(_HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "drips events": _then_drips(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n", b": ping\n\n"
    ),
    "drips interim replies": _then_drips(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "body without end": _then_floods(_HEAD + b"\r\n", b" " * 65536),
    "chunks without end": _then_floods(
        _HEAD + b"transfer-encoding: chunked\r\n\r\n", b"10000\r\n" + b" " * 65536 + b"\r\n"
    ),
    "error without end": _then_floods(b"HTTP/1.1 400 No\r\n\r\n", b"x" * 65536),
    "header without end": _then_floods(b"HTTP/1.1 200 OK\r\nx-a: ", b"a" * 65536),
    "headers without end": _then_floods(b"HTTP/1.1 200 OK\r\n", b"x-a: b\r\n" * 999),
    "interim replies without end": _then_floods(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 999),
    "unpacks to 300 MB": _sends(reply(200, _BOMB, _GZIP)),
    "error that unpacks to 300 MB": _sends(reply(400, _BOMB, _GZIP)),
    "huge chunk": _sends(_HEAD + b"transfer-encoding: chunked\r\n\r\nffffffffffffffff\r\nx"),
    "negative chunk": _sends(_HEAD + b"transfer-encoding: chunked\r\n\r\n-5\r\nx\r\n0\r\n\r\n"),
    "chunk that is no number": _sends(_HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\nx\r\n"),
    "huge length": _then_drips(_HEAD + b"content-length: 99999999999999999\r\n\r\n"),
    "negative length": _sends(_HEAD + b"content-length: -5\r\n\r\n{}"),
    "length that is no number": _sends(_HEAD + b"content-length: ten\r\n\r\n{}"),
    "empty reply": _sends(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "no HTTP": _sends(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "redirect": _sends(reply(307, b"", {"location": "http://127.0.0.1:9/v1"})),
    "nesting": _sends(reply(200, b"[" * 100_000)),
    "millions of values": _sends(reply(200, b'{"data":[' + b"0," * 2_000_000 + b"0]}")),
}


def _as_thread(url: str) -> None:
    embed("threads", Endpoint(url, MODEL, 16), ["a"], timeout=_TIMEOUT_S)


def _as_task(url: str) -> None:
    embed("tasks", Endpoint(url, MODEL, 16), ["a"], timeout=_TIMEOUT_S)


def _as_remote_task(url: str) -> None:
    embed("remote tasks", Endpoint(url, MODEL, 16), ["a"], timeout=_TIMEOUT_S)


def _by_sdk(url: str) -> None:
    """As threads ask servers on other machines."""
    session = Session.open(Endpoint(url, MODEL, 16), 1, _TIMEOUT_S)
    answer = session.send(Request("/v1/embeddings", {"model": MODEL, "input": ["a"]}))
    assert not isinstance(answer, Reply) or len(answer.body) < _MOST_BYTES


def _verifying(url: str) -> None:
    verify(url, None, ServerSpec(MODEL), timeout_s=_TIMEOUT_S)


def _probing(url: str) -> None:
    found = probe.get(url, "/v1/models", timeout_s=_TIMEOUT_S)
    assert found is None or len(found.body) < _MOST_BYTES


@pytest.mark.parametrize(
    "ask", [_as_thread, _as_task, _as_remote_task, _by_sdk, _verifying, _probing]
)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_reply_ends_in_time_with_an_error_of_ours(
    name: str, ask: Callable[[str], None]
) -> None:
    own = psutil.Process()
    before, begin_s = own.memory_info().rss, time.monotonic()
    accepted = ask in (_probing, _by_sdk)
    with HttpServer(HOSTILE[name]) as server:
        with contextlib.suppress(EmberdError) if accepted else pytest.raises(EmberdError):
            ask(server.url)
    assert time.monotonic() - begin_s < _BOUND_S
    assert own.memory_info().rss - before < _MOST_BYTES


def _connections_to(port: int) -> list[Any]:
    found = psutil.Process().net_connections("tcp")
    return [each.laddr for each in found if each.raddr and each.raddr.port == port]


@pytest.mark.parametrize("kind", WITH_REMOTE)
def test_interrupted_call_closes_its_connections_and_delays_no_other(kind: Kind) -> None:
    with FakeServer(slow="SLOW") as server:

        def fail(finished: int) -> None:
            if finished:
                raise LookupError

        texts = ["a", *(f"SLOW {number}" for number in range(3))]
        with pytest.raises(LookupError):
            embed(kind, server.endpoint, texts, batch_size=1, on_done=fail, timeout=60)
        # The connection of the request that was answered may be kept.
        waiting.until(lambda: len(_connections_to(server.port)) <= 1, _BOUND_S)
        begin_s = time.monotonic()
        embed(kind, server.endpoint, ["b"], timeout=60)
        assert time.monotonic() - begin_s < _BOUND_S


def test_interrupted_call_leaves_the_requests_of_others_alone() -> None:
    with FakeServer(slow="SLOW", latency_s=0.3) as server:
        client = Client(lambda: server.endpoint, Settings.resolve(model=MODEL, timeout=30))
        found: list[int] = []

        def other() -> None:
            found.append(len(client.embed([f"text {n}" for n in range(40)], "{text}", None)))

        thread = threading.Thread(target=other)
        thread.start()

        def fail(finished: int) -> None:
            raise LookupError

        for _ in range(5):
            with pytest.raises(LookupError):
                client.embed(["a", "b"], "{text}", fail)
        thread.join(_BOUND_S)
        assert found == [40]
        client.close()


@pytest.mark.parametrize("kind", WITH_REMOTE)
def test_long_text_that_times_out_is_named_and_not_sent_again(kind: Kind) -> None:
    with FakeServer(slow="SLOW", context_tokens=100_000) as server:
        text = "SLOW " + "x" * 5_000
        with pytest.raises(RequestTimeoutError, match="text 0"):
            embed(kind, server.endpoint, [text], timeout=0.5)
        assert server.embedded == [[text]]


def _twice(cut: int) -> Answer:
    """Answer each request twice, the second time without the last ``cut`` bytes."""

    def answer(asked: Asked, connection: socket.socket) -> bytes:
        texts = asked.body["input"]
        entries = [
            {"index": index, "embedding": vector_of(text).tolist()}
            for index, text in enumerate(texts)
        ]
        whole = reply(200, {"data": entries, "model": MODEL})
        return whole + whole[: len(whole) - cut]

    return answer


@pytest.mark.parametrize("cut", [0, 1, 20, 200])
@pytest.mark.parametrize("kind", ["threads", "tasks", "sdk"])
def test_second_answer_to_a_request_is_not_taken_for_that_to_the_next(kind: str, cut: int) -> None:
    requests = [wire.embed_request(MODEL, [f"text {n}"], None, native=16) for n in range(6)]
    with HttpServer(_twice(cut)) as server:
        endpoint = Endpoint(server.url, MODEL, 16)

        async def asked() -> list[Reply | TransportError]:
            of_loop = await AsyncTransport(1, 5).session(endpoint)
            return [await of_loop.send(each) for each in requests]

        if kind == "tasks":
            answers = asyncio.run(asked())
        else:
            opened = Session.open(endpoint, 1, 5) if kind == "sdk" else LoopbackSession(endpoint, 5)
            answers = [opened.send(each) for each in requests]
    right = 0
    for number, answer in enumerate(answers):
        if isinstance(answer, Reply):
            (vector,) = finish(wire.read_embeddings(answer.body, 1, 16)).vectors
            assert np.allclose(np.frombuffer(vector, "<f4"), vector_of(f"text {number}"))
            right += 1
    assert right >= len(requests) // 2


@pytest.fixture
def silent_resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Resolve addresses, and no name before the end of the test."""
    ended = threading.Event()
    resolve = socket.getaddrinfo

    def getaddrinfo(*given: Any, **named: Any) -> Any:
        try:
            ipaddress.ip_address(given[0])
        except ValueError:
            if socket.AI_NUMERICHOST not in given:
                ended.wait(_STUCK_S)
            raise socket.gaierror(socket.EAI_NONAME, "no such name") from None
        return resolve(*given, **named)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield
    ended.set()


@pytest.mark.usefixtures("silent_resolver")
def test_look_up_of_a_name_takes_no_longer_than_the_operation() -> None:
    begin_s = time.monotonic()
    with pytest.raises(OSError):  # noqa: PT011 - any of them
        probe.fetch("http://box.invalid:1", "/v1/models", None, None, 0.3)
    with pytest.raises(OSError), bounded(0.3):  # noqa: PT011
        listeners.find("http://box.invalid:1")
    assert time.monotonic() - begin_s < _STUCK_S / 2

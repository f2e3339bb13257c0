"""What one client can take from the server, with the key and without it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import waiting
from emberd import probe
from emberd.serving import connections
from emberd.serving import service as service_module
from emberd.serving.service import ServedModel, Service
from fake_encoder import FakeEncoder
from served import KEY, Served, command, serving, started

HUGE = 10_000_000_000
POST = "POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
WITH_KEY = f"Authorization: Bearer {KEY}\r\n"
FEW_DESCRIPTORS = ["sh", "-c", 'ulimit -n 400; exec "$@"', "sh"]
IMPATIENT = """
import sys
from emberd.serving import __main__ as process, connections
connections._WITHOUT_KEY_S = 1.0
sys.exit(process.main())
"""


def _connect(server: Served, sent: str = "") -> socket.socket:
    opened = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), 20)
    opened.sendall(sent.encode())
    return opened


def _is_closed(opened: socket.socket) -> bool:
    with contextlib.suppress(ConnectionError):
        while opened.recv(65_536):
            pass
    return True


def _descriptors(server: Served) -> int:
    return psutil.Process(server.process.pid).num_fds()


def test_connections_without_the_key_leave_room_for_those_with_it(tmp_path: Path) -> None:
    with (
        started(tmp_path, program=[*FEW_DESCRIPTORS, *command()]) as server,
        contextlib.ExitStack() as held,
    ):
        waiting.until(lambda: probe.is_ready(server.url))
        before = _descriptors(server)
        client = held.enter_context(server.client(timeout=20))
        assert client.get("/v1/models").status_code == 200
        for number in range(1000):
            sent = ("", "GET /v1/mod", POST, POST + "Content-Length: 99\r\n\r\n{")[number % 4]
            held.enter_context(_connect(server, sent))
            if number % 100 == 99:
                assert len(server.vectors("a")[0]) == 384
                assert client.get("/v1/models").status_code == 200  # else it is idle for too long
        # Not one of the 1,000 took the place of the one that has shown the key.
        (connection,) = client._transport._pool.connections  # type: ignore[attr-defined]
        assert client.get("/v1/models").status_code == 200
        assert client._transport._pool.connections == [connection]  # type: ignore[attr-defined]
        assert _descriptors(server) < 400
        held.close()
        waiting.until(lambda: _descriptors(server) <= before + 2)
        assert server.log.stat().st_size < 20_000


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "G",
        POST,
        POST + f"Content-Length: {HUGE}\r\n\r\n{{",
        "GET /ready HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
def test_connection_without_the_key_has_little_time(impatient: Served, sent: str) -> None:
    with impatient.client() as client:
        assert client.get("/v1/models").status_code == 200
        with _connect(impatient, sent) as opened:
            assert _is_closed(opened)
        assert client.get("/v1/models").status_code == 200


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    program = [sys.executable, "-c", IMPATIENT, "--encoder", "demo"]
    with started(tmp_path_factory.mktemp("impatient"), program=program) as server:
        waiting.until(lambda: probe.is_ready(server.url))
        yield server


@pytest.mark.parametrize(("key", "status"), [("", b"401"), (WITH_KEY, b"413")])
def test_huge_body_is_refused_before_it_is_sent(server: Served, key: str, status: bytes) -> None:
    with _connect(server, f"{POST}{key}Content-Length: {HUGE}\r\n\r\n") as opened:
        assert opened.recv(12) == b"HTTP/1.1 " + status


@pytest.mark.parametrize(
    "request_line",
    ["POST /v1/embeddings", "GET /v1/models", "GET /ready", "GET /health", "GET /metrics"],
)
def test_connection_without_the_key_gets_one_answer(server: Served, request_line: str) -> None:
    request = f"{request_line} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
    with _connect(server, request * 100) as opened:
        answers = b""
        with contextlib.suppress(ConnectionError):
            while piece := opened.recv(65_536):
                answers += piece
    assert answers.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answers


def test_connection_with_the_key_stays_open(server: Served) -> None:
    with server.client() as client:
        for path in ("/v1/models", "/ready", "/metrics", "/v1/models"):
            assert "connection" not in client.get(path).headers
        assert len(client._transport._pool.connections) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("megabytes", [1, 8])
def test_client_with_another_key_that_sends_much_learns_that_it_was_refused(
    server: Served, megabytes: int
) -> None:
    body = bytes(megabytes << 20)
    head = f"{POST}Authorization: Bearer other\r\nContent-Length: {len(body)}\r\n\r\n"
    with _connect(server, head) as opened:
        opened.sendall(body)
        assert opened.recv(12) == b"HTTP/1.1 401"


def test_too_many_texts_are_refused(server: Served) -> None:
    reply = server.embed(["a"] * 16_385)
    assert (reply.status_code, reply.json()["type"]) == (413, "413")


def test_warnings_that_anyone_can_cause_are_counted_and_not_all_written(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        for _ in range(100):
            with _connect(server, "nonsense\r\n\r\n") as opened:
                assert opened.recv(12) == b"HTTP/1.1 400"
            with _connect(server, POST + "Content-Length: 0\r\n\r\n") as opened:
                assert opened.recv(12) == b"HTTP/1.1 401"
        lines = server.log.read_text().splitlines()
        assert 2 <= sum("WARNING" in line for line in lines) <= 40


def test_health_probes_share_one_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "_HEALTH_EVERY_S", 60.0)
    fake = FakeEncoder()

    async def probed() -> int:
        service = Service(fake, ServedModel("test/fake"))
        async with service.running():
            for _ in range(10):
                await asyncio.gather(*[service.check_health() for _ in range(1000)])
        return sum(map(len, fake.batches))

    assert asyncio.run(probed()) <= 2  # and one that the server sends when it has loaded


class _Connection:
    """A connection as ``Connections`` sees it."""

    def __init__(self, *, is_busy: bool) -> None:
        self.is_busy = is_busy
        self.is_closed = False
        self.is_read = True
        self.loop = asyncio.get_running_loop()
        self.since_s = time.monotonic()
        self.transport = self

    def abort(self) -> None:
        self.is_closed = True

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True


@pytest.mark.parametrize("is_busy", [True, False])
async def test_busy_clients_are_never_closed_for_another_one(
    monkeypatch: pytest.MonkeyPatch, is_busy: bool
) -> None:
    monkeypatch.setattr(connections, "_MOST_CONNECTIONS", 3)
    counted = connections.Connections()
    clients: list[Any] = [_Connection(is_busy=is_busy) for _ in range(4)]
    admitted = []
    for client in clients:
        counted.add(client)
        admitted.append(counted.admit(client))
    assert admitted == [True, True, True, not is_busy]
    assert [client.is_closed for client in clients] == [not is_busy, False, False, False]


async def test_connections_without_the_key_wait_while_a_client_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "_PAUSE_S", 60.0)
    counted = connections.Connections()
    client: Any = _Connection(is_busy=True)
    others: list[Any] = [_Connection(is_busy=False) for _ in range(10)]

    async def read(*, is_answered: bool) -> list[bool]:
        counted.add(client)
        counted.admit(client)
        if is_answered:
            counted.answered(client)
        for other in others:
            counted.add(other)
            counted.wait_for_turn(other)
        for _ in range(100):
            await asyncio.sleep(0)
        return [other.is_read for other in others]

    assert await read(is_answered=True) == [True] * 10
    assert await read(is_answered=False) == [True] + [False] * 9
    # With its key it is a client too, and no longer waits.
    counted.admit(others[5])
    assert others[5].is_read

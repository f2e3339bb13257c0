"""SIGTERM: requests in flight are answered, and a successor takes over without a lost request."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

import waiting
from command import Command
from emberd.serving import asgi_process
from emberd.system import listening_sockets
from fake_server import QWEN, FakeServer
from gateways import Running, serving

SHORT = "qwen3-embedding-0.6b"
CALLERS = 8


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(model=QWEN, dimensions=1024, slow="SLOW") as running:
        yield running


@pytest.fixture
def own(tmp_path: Path, server: FakeServer) -> Iterator[Running]:
    with serving(tmp_path / "home", QWEN, environment={"EMBERD_BASE_URL": server.url}) as running:
        assert running.post(model=SHORT, input="warm").status_code == 200
        yield running


def _in_flight(own: Running) -> float:
    return own.metrics()["emberd_gateway_requests_in_flight"]


def test_an_idle_gateway_ends_at_once_with_success(own: Running) -> None:
    own.terminate()
    assert own.ended() == 0
    assert not own.socket.exists()


def test_requests_in_flight_are_answered(own: Running, server: FakeServer) -> None:
    server.latency_s = 1.0
    with ThreadPoolExecutor(4) as pool:
        texts = [[f"{n} {i}" for i in range(3)] for n in range(4)]
        pending = [pool.submit(own.post, model=SHORT, input=each) for each in texts]
        waiting.until(lambda: _in_flight(own) == 4)
        own.terminate()
        replies = [each.result() for each in pending]
    assert [reply.status_code for reply in replies] == [200] * 4
    assert own.ended() == 0


def test_an_open_connection_is_answered_and_told_to_close(own: Running, server: FakeServer) -> None:
    with own.client() as client, ThreadPoolExecutor(1) as pool:
        assert client.get("/ready").status_code == 200
        server.latency_s = 1.0
        running = pool.submit(own.post, model=SHORT, input="long")
        waiting.until(lambda: _in_flight(own) == 1)
        own.terminate()
        waiting.until(lambda: "draining" in own.log.read_text())
        reply = client.post("/v1/embeddings", json={"model": SHORT, "input": "late"})
        assert (reply.status_code, reply.headers["connection"]) == (200, "close")
        with socket.socket(socket.AF_UNIX) as late, pytest.raises(FileNotFoundError):
            late.connect(str(own.socket))
        assert running.result().status_code == 200
    assert own.ended() == 0


def test_a_second_sigterm_ends_it_now(own: Running) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(own.post, model=SHORT, input="SLOW")
        waiting.until(lambda: _in_flight(own) == 1)
        own.terminate()
        waiting.until(lambda: "draining" in own.log.read_text())
        own.terminate()
        assert own.ended() == -signal.SIGTERM
        assert isinstance(running.exception(), httpx.HTTPError)


def test_a_successor_starts_while_requests_are_in_flight(own: Running, server: FakeServer) -> None:
    server.latency_s = 10.0  # a start takes 3 s on a busy machine
    port = int(own.url.rpartition(":")[2])
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(own.post, model=SHORT, input="long")
        waiting.until(lambda: _in_flight(own) == 1)
        own.terminate()
        waiting.until(lambda: "draining" in own.log.read_text())
        home, variables = own.socket.parent.parent, {"EMBERD_BASE_URL": server.url}
        with serving(home, QWEN, environment=variables, port=port) as successor:
            assert not pending.done()
            assert pending.result().status_code == 200
            assert own.ended() == 0
            server.latency_s = 0
            assert successor.post(model=SHORT, input="next").status_code == 200
            with successor.tcp() as client:
                assert client.get("/ready").status_code == 200


@pytest.mark.parametrize("turns", range(5))
async def test_a_connection_that_was_just_accepted_is_kept(turns: int) -> None:
    made: list[asyncio.Transport] = []

    class Kept(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            made.append(transport)

    listener = listening_sockets.listen("127.0.0.1", 0)
    with listener.dup() as of_systemd, socket.socket() as client:
        server = await asyncio.get_running_loop().create_server(Kept, sock=listener)
        client.connect(of_systemd.getsockname())
        for _ in range(turns):
            await asyncio.sleep(0)
        asgi_process.DrainingServer.stop_listening(SimpleNamespace(servers=[server]))  # type: ignore[arg-type]
        await asyncio.sleep(0.05)
        assert not server.sockets
        of_systemd.setblocking(False)
        try:
            with of_systemd.accept()[0]:
                is_queued = True
        except BlockingIOError:
            is_queued = False
        assert (len(made), is_queued) in [(1, False), (0, True)]
        for transport in made:
            transport.close()


def test_a_reply_that_is_being_read_slowly_is_sent_whole(own: Running) -> None:
    body = json.dumps({"model": SHORT, "input": ["x"] * 2048}).encode()
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    with socket.socket(socket.AF_UNIX) as slow, own.client() as other:
        slow.settimeout(60)
        slow.connect(str(own.socket))
        slow.sendall(head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        received = bytearray(slow.recv(1000))
        assert other.get("/health").status_code == 200
        own.terminate()
        time.sleep(2.5)  # longer than idle connections are kept
        assert other.get("/health").status_code == 200
        while len(received) < _whole(received) and (part := slow.recv(1 << 20)):
            received += part
    assert len(received) == _whole(received)
    assert own.ended() == 0


def _whole(received: bytearray) -> int:
    """Return the length of the whole reply, of which the headers have arrived."""
    headers, _, _ = received.partition(b"\r\n\r\n")
    found = re.search(rb"content-length: (\d+)", headers)
    assert found
    return len(headers) + 4 + int(found[1])


_ACTIVATED = """
import os, sys
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.executable, [sys.executable, "-m", "emberd", "serve", *sys.argv[1:]])
"""


@contextmanager
def _activated(home: Path, server: FakeServer, listener: socket.socket) -> Iterator[Running]:
    """Run a gateway on a socket that stays open in this process, as in systemd."""
    log = home.parent / f"activated-{listener.fileno()}-{len(list(home.parent.iterdir()))}.log"
    command = Command(home, {"EMBERD_BASE_URL": server.url, "EMBERD_SERVE_KEY": "key"})
    # The shell puts the socket where systemd has it.
    run = f'exec 3<&{listener.fileno()}; exec "$@"'
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", run, "bash", sys.executable, "-c", _ACTIVATED, QWEN],
            env=command.environment,
            stderr=output,
            stdout=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
        )
    port = listener.getsockname()[1]
    try:
        waiting.until(lambda: "serving" in log.read_text())
        yield Running(process, f"http://127.0.0.1:{port}", home, "key", log)
    finally:
        process.kill()
        process.wait(timeout=20)


def test_a_rolling_restart_under_load_loses_no_request(tmp_path: Path, server: FakeServer) -> None:
    home, end = tmp_path / "home", threading.Event()
    counts: list[int] = []
    failures: list[str] = []
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:

        def call(own: Running, number: int) -> None:
            done = 0
            with own.tcp() as client:
                while not end.is_set():
                    body = {"model": SHORT, "input": f"{number} {done}"}
                    try:
                        reply = client.post("/v1/embeddings", json=body)
                        if reply.status_code != 200:
                            failures.append(f"{reply.status_code} {reply.text[:200]}")
                    except httpx.HTTPError as error:
                        failures.append(repr(error))
                    done += 1
            counts.append(done)

        with _activated(home, server, listener) as first, ThreadPoolExecutor(CALLERS) as pool:
            callers = [pool.submit(call, first, number) for number in range(CALLERS)]
            try:
                waiting.until(lambda: len(server.embedded) > 20)
                with _activated(home, server, listener) as second:
                    first.terminate()
                    assert first.ended() == 0
                    before = len(server.embedded)
                    waiting.until(lambda: len(server.embedded) > before + 10)
                    end.set()
                    for caller in callers:
                        caller.result(timeout=60)
                    second.terminate()
                    assert second.ended() == 0
            finally:
                end.set()
    assert failures == []
    assert min(counts) > 0

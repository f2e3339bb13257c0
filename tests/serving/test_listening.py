"""Where our own server listens: on a port, or on a socket that it inherits."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import waiting
from emberd import probe
from emberd.manager import ports
from emberd.serving import __main__ as process
from emberd.system import listening_sockets
from served import Served

SERVE = [sys.executable, "-m", "emberd.serving", "--encoder", "demo"]


def _on_a_port() -> socket.socket | None:
    return listening_sockets.listen("127.0.0.1", 0)


def _inherited() -> socket.socket | None:
    with ports.listen(None) as opened:
        return listening_sockets.inherit(os.dup(opened.fileno()))


@pytest.mark.parametrize("listen", [_on_a_port, _inherited])
def test_small_writes_are_sent_at_once(listen: Callable[[], socket.socket | None]) -> None:
    """Otherwise each body waits 40 ms for the acknowledgement of its headers."""
    listener = listen()
    assert listener is not None

    async def connected() -> int:
        accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def look(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            at = writer.get_extra_info("socket")
            accepted.set_result(at.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        server = await asyncio.start_server(look, sock=listener)
        async with server:
            _, writer = await asyncio.open_connection(*listener.getsockname())
            writer.close()
            return await accepted

    assert asyncio.run(connected())


def test_a_server_answers_on_a_socket_that_listened_before_it_started() -> None:
    with ports.listen(None) as opened:
        fd = opened.fileno()
        server = subprocess.Popen([*SERVE, "--fd", str(fd)], pass_fds=[fd])
        url = f"http://127.0.0.1:{opened.getsockname()[1]}"
    try:
        waiting.until(lambda: probe.is_ready(url), 30)
    finally:
        server.terminate()
        assert server.wait(30) == 0


@pytest.mark.parametrize("kind", ["closed", "bound"])
def test_a_descriptor_that_does_not_listen_is_an_error(kind: str) -> None:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        fds = [opened.fileno()] if kind == "bound" else []
        done = subprocess.run(
            [*SERVE, "--fd", str(opened.fileno())], pass_fds=fds, capture_output=True, text=True
        )
    assert done.returncode == process.EXIT_NO_PORT
    assert "descriptor" in done.stderr


@pytest.mark.parametrize("given", [[], ["--port", "0", "--fd", "3"]])
def test_a_port_or_a_descriptor_is_needed_and_not_both(given: list[str]) -> None:
    done = subprocess.run([*SERVE, *given], capture_output=True, text=True)
    assert done.returncode == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not count it for a thread")
def test_an_idle_server_sleeps(server: Served) -> None:
    """uvicorn's own loop wakes up ten times a second."""

    def wake_ups() -> int:
        status = Path(f"/proc/{server.process.pid}/status").read_text()  # of the main thread
        return int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])

    def in_two_seconds() -> int:
        before = wake_ups()
        time.sleep(2)  # what is counted is what happens in this time
        return wake_ups() - before

    # Connections of other tests are looked at once a second, and closed later.
    waiting.until(lambda: in_two_seconds() < 10)

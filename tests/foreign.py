"""Servers that look like somebody's SGLang, for tests of finding what others started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import waiting
from emberd import probe
from emberd.manager import discovery
from emberd.settings import ServerSpec

Foreign = Callable[..., "tuple[str, subprocess.Popen[bytes]]"]

SPEC = ServerSpec(model="stub/foreign")


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Foreign]:
    """Starts a server that looks like somebody's SGLang, and gives its URL and process."""
    package = tmp_path / "site" / "sglang"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    path = os.pathsep.join((os.fspath(package.parent), os.fspath(Path(__file__).parent)))
    for program in (package / "launch_server.py", package.parent / "something.py"):
        program.write_text("import stub_server\n\nstub_server.main()\n")

    with ExitStack() as started:

        def start(
            model: str = SPEC.model,
            key: str = "",
            module: str = "sglang.launch_server",
            owner: str = "stub",
            quantization: str | None = None,
        ) -> tuple[str, subprocess.Popen[bytes]]:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            command = [sys.executable, "-m", module, "--port", str(port), "--model", model]
            told = {**os.environ, "STUB_KEY": key, "STUB_OWNER": owner, "PYTHONPATH": path}
            told |= {"STUB_QUANTIZATION": quantization} if quantization else {}
            server = subprocess.Popen(command, env=told, stderr=subprocess.DEVNULL)
            started.callback(server.wait)
            started.callback(server.kill)
            url = f"http://127.0.0.1:{port}"
            waiting.until(lambda: probe.is_ready(url))
            return url, server

        yield start


class Taken:
    """A port at which another user listens.

    Attributes:
        user: That user.
        port: The port.
        url: Its root.
    """

    user = 64_202

    def __init__(self, port: int) -> None:
        self._socket = socket.create_server(("127.0.0.1", port))
        # The kernel takes the owner of the file for the owner of the socket.
        os.fchown(self._socket.fileno(), self.user, self.user)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def was_contacted(self) -> bool:
        """Return whether anything connected, even without sending anything."""
        self._socket.settimeout(0)
        try:
            self._socket.accept()[0].close()
        except BlockingIOError:
            return False
        return True

    def received(self) -> bytes:
        """Return what the first client has sent, once it has closed its connection."""
        self._socket.settimeout(10)
        connection, _ = self._socket.accept()
        with connection, connection.makefile("rb") as stream:
            return stream.read()

    def close(self) -> None:
        """Free the port."""
        self._socket.close()


@pytest.fixture
def taken() -> Iterator[Callable[[int], Taken]]:
    """Has another user listen at a port; 0 for any."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root can give a socket to another user")
    with ExitStack() as opened:

        def take(port: int = 0) -> Taken:
            made = Taken(port)
            opened.callback(made.close)
            return made

        yield take


@pytest.fixture
def no_default_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at a port where nothing is, whatever this machine has on the true one."""
    monkeypatch.setattr(discovery, "DEFAULT_PORT", 1)

"""The gateway as a deployment starts it, as a plain process with folders of a test."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

import waiting
from deploy.manifests import Entry

_PORT: Final = "7475"
_EMBERD: Final = str(Path(sys.prefix, "bin", "emberd"))
_BEFORE_READY_S: Final = 60.0
_MOST_S: Final = 100.0  # a test may take 120 s
# What of this machine a container would not have.
_OURS: Final = ("EMBERD_", "HF_", "LISTEN_")


@dataclass(frozen=True)
class Placed:
    """An entry with the folders of a test, a free port, and programs of this environment.

    Attributes:
        entry: What the deployment says.
        folder: Where its absolute paths begin.
        port: The port instead of 7475.
        more: Variables besides its own.
    """

    entry: Entry
    folder: Path
    port: int
    more: dict[str, str]

    @property
    def url(self) -> str:
        """Where probes and clients ask."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def home(self) -> Path:
        """The state folder."""
        return Path(self.environment["EMBERD_HOME"])

    @property
    def command(self) -> list[str]:
        """The command line; without the init process of the image, which Debian has."""
        words = list(self.entry.command)
        if words[:2] == ["tini", "--"]:
            words = words[2:]
        assert Path(words[0]).name == "emberd"
        return [_EMBERD, *(self._placed(word) for word in words[1:]), "--port", str(self.port)]

    @property
    def check(self) -> list[str]:
        """The command of the health check."""
        first, *rest = self.entry.check
        assert Path(first).name == "python"
        return [sys.executable, *(word.replace(_PORT, str(self.port)) for word in rest)]

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the process."""
        kept = {name: text for name, text in os.environ.items() if not name.startswith(_OURS)}
        own = {name: self._placed(text) for name, text in self.entry.environment.items()}
        path = {"PATH": f"{Path(_EMBERD).parent}:{os.environ['PATH']}"}
        return {**kept, **own, **path, **self.more}

    def _placed(self, text: str) -> str:
        if text == "0.0.0.0":  # tests listen on loopback only
            return "127.0.0.1"
        return f"{self.folder}{text}" if text.startswith("/") else text

    def write_files(self) -> None:
        """Create what the deployment mounts."""
        for path, content in self.entry.files.items():
            file = Path(self._placed(path))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
            file.chmod(0o440)

    @property
    def key(self) -> str:
        """The key of clients."""
        if given := self.more.get("EMBERD_SERVE_KEY"):
            return given
        files = [Path(self._placed(path)) for path in self.entry.files]
        return (files or [self.home / "gateway/key"])[0].read_text().strip()

    def status(self, path: str) -> int | None:
        """Return the status of the answer to a probe; None if there is no answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request("GET", path)
            return connection.getresponse().status
        return None

    def client(self, host: str = "localhost") -> httpx.Client:
        """Return a client with the key, which addresses the gateway by ``host``."""
        headers = {"authorization": f"Bearer {self.key}", "host": host}
        # Without certificates, whose loading takes longer than the requests.
        return httpx.Client(
            base_url=self.url, headers=headers, timeout=60, trust_env=False, verify=False
        )


def start(placed: Placed, **options: Any) -> subprocess.Popen[Any]:
    """Start the gateway; its log is in the folder of the test."""
    placed.write_files()
    log = placed.folder / f"gateway-{placed.port}.log"
    with log.open("wb") as output:
        return subprocess.Popen(
            placed.command,
            env=placed.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            **options,
        )


@contextlib.contextmanager
def running(placed: Placed, ready: str = "/ready") -> Iterator[subprocess.Popen[Any]]:
    """Run the gateway until the end of the block; it is ready when the block begins."""
    process = start(placed)
    try:
        waiting.until(
            lambda: process.poll() is not None or placed.status(ready) == 200,
            _BEFORE_READY_S,
            poll_s=0.1,
        )
        log = placed.folder / f"gateway-{placed.port}.log"
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        process.kill()
        process.wait(20)


def stop(placed: Placed, process: subprocess.Popen[Any]) -> int:
    """Send SIGTERM as the deployment does, and return the exit code within its grace period."""
    process.send_signal(signal.SIGTERM)
    return process.wait(min(placed.entry.grace_s, _MOST_S))


_ACTIVATED: Final = """
import os, sys
os.environ |= {"LISTEN_FDS": sys.argv[1], "LISTEN_PID": str(os.getpid())}
os.execv(sys.argv[2], sys.argv[2:])
"""


def start_activated(
    command: list[str], listeners: list[socket.socket], **options: Any
) -> subprocess.Popen[Any]:
    """Start a command on sockets that stay open in this process, as those of systemd."""
    # High numbers first: the target of one may be the source of another.
    copies = [fcntl.fcntl(each, fcntl.F_DUPFD, 100) for each in listeners]
    moves = " ".join(f"{number}<&{copy}" for number, copy in enumerate(copies, start=3))
    run = [sys.executable, "-c", _ACTIVATED, str(len(copies)), *command]
    try:
        return subprocess.Popen(
            ["bash", "-c", f'exec {moves}; exec "$@"', "bash", *run], pass_fds=copies, **options
        )
    finally:
        for copy in copies:
            os.close(copy)

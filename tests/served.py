"""A server of our own as a process, for tests that talk to it over HTTP."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

import emberd
import waiting
from emberd import probe
from emberd.catalog import DEMO_MODEL
from emberd.env import SERVER_KEY
from emberd.serving import MODULE

KEY = "made-up-key-of-the-tests"
GRACE_S = 10.0
_LISTENING = re.compile(r"listening on \S+ port (\d+)")


@dataclass(frozen=True)
class Served:
    """A running server: its process, its address, its log."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    key: str | None

    def client(self, timeout: float = 100.0) -> httpx.Client:
        """Return an HTTP client that sends the key."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=timeout,
            trust_env=False,
            verify=False,  # loading certificates takes longer than the requests
        )

    def embed(self, given: Any, **fields: Any) -> httpx.Response:
        """Return the reply to one request for embeddings."""
        with self.client() as client:
            return client.post(
                "/v1/embeddings", json={"input": given, "model": DEMO_MODEL, **fields}
            )

    def vectors(self, given: Any, **fields: Any) -> list[list[float]]:
        """Return the vectors of one request."""
        reply = self.embed(given, **fields)
        assert reply.status_code == 200, reply.text
        return [item["embedding"] for item in reply.json()["data"]]

    def activity(self) -> probe.Activity:
        """Return the server's counters."""
        activity = probe.activity(self.url, None)
        assert activity is not None
        return activity

    def terminate(self) -> None:
        """Ask the server to drain."""
        self.process.send_signal(signal.SIGTERM)

    def ended(self, seconds: float = GRACE_S) -> int:
        """Wait for the end of the process and return its exit code."""
        return self.process.wait(timeout=seconds)


@contextlib.contextmanager
def serving(folder: Path, *options: str, key: str | None = KEY) -> Iterator[Served]:
    """Run a server until the end of the ``with``; it answers when the body begins."""
    with started(folder, *options, key=key) as server:
        waiting.until(lambda: probe.is_ready(server.url))
        yield server


@contextlib.contextmanager
def started(
    folder: Path, *options: str, key: str | None = KEY, program: list[str] | None = None
) -> Iterator[Served]:
    """Run a server; it listens when the body begins, and may still be loading."""
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*(program or command()), "--port", "0", *options],
            env=environment(key),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=output,
        )
    try:
        ports = waiting.until(lambda: _LISTENING.findall(log.read_text()))
        yield Served(process, f"http://127.0.0.1:{ports[0]}", log, key)
    finally:
        process.kill()
        process.wait(timeout=GRACE_S)


def as_array(vectors: Any) -> NDArray[np.float32]:
    """Return lists of numbers as the server had them."""
    return np.asarray(vectors, dtype=np.float32)


def command() -> list[str]:
    """Return the command of a server, without a port."""
    return [sys.executable, "-m", MODULE, "--encoder", "demo"]


def environment(key: str | None) -> dict[str, str]:
    """Return the environment of a server that imports this very source tree."""
    roots = [Path(emberd.__file__).parents[1], Path(__file__).parent]
    given = {SERVER_KEY: key} if key else {}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.fspath, roots)), **given}

"""``emberd serve`` as a process, and clients of it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

import waiting
from command import Command

GRACE_S = 20.0
TIMEOUT_S = 100.0
_LISTENING = re.compile(r"listening on http://(\S+)/v1")


def own_client(path: Path, **options: Any) -> httpx.Client:
    """Return a client of a Unix socket."""
    # Without certificates, whose loading takes longer than the requests.
    transport = httpx.HTTPTransport(uds=str(path), verify=False)
    return httpx.Client(transport=transport, base_url="http://localhost", timeout=100, **options)


@dataclass(frozen=True)
class Running:
    """A running gateway.

    Attributes:
        process: Its process.
        url: The root of its TCP address; empty if it has none.
        socket: Its Unix socket.
        key: The key of its clients.
        log: The file with its stderr.
    """

    process: subprocess.Popen[Any]
    url: str
    socket: Path
    key: str
    log: Path

    def client(self, **options: Any) -> httpx.Client:
        """Return a client of the Unix socket."""
        return own_client(self.socket, **options)

    def tcp(self, key: str | None = "", **options: Any) -> httpx.Client:
        """Return a client of the TCP socket, with the right key unless another is given."""
        key = self.key if key == "" else key
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=100,
            trust_env=False,
            verify=False,
            **options,
        )

    def post(self, path: str = "/v1/embeddings", **body: Any) -> httpx.Response:
        """Return the reply to one request through the Unix socket."""
        with self.client() as client:
            return client.post(path, json=body)

    def metrics(self) -> dict[str, float]:
        """Return the samples of its metrics, by name with labels."""
        with self.client() as client:
            lines = client.get("/metrics").text.splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def terminate(self) -> None:
        """Ask it to drain."""
        self.process.send_signal(signal.SIGTERM)

    def ended(self) -> int:
        """Wait for its end, and return its exit code."""
        return self.process.wait(timeout=GRACE_S)


@contextlib.contextmanager
def serving(
    home: Path, *arguments: str, environment: dict[str, str] | None = None, port: int = 0
) -> Iterator[Running]:
    """Run a gateway until the end of the block; it answers when the block begins."""
    home.parent.mkdir(parents=True, exist_ok=True)
    log = home.parent / f"gateway-{os.urandom(4).hex()}.log"
    command = Command(home, environment or {})
    port_option = () if "--no-tcp" in arguments else ("--port", str(port))
    with log.open("wb") as output:
        process = command.begin(
            *("serve", *port_option, *arguments), stderr=output, stdout=subprocess.DEVNULL
        )
    try:
        waiting.until(lambda: "serving" in log.read_text() or process.poll() is not None)
        text = log.read_text()
        assert process.poll() is None, text
        found = _LISTENING.search(text)
        key = home / "gateway" / "key"
        yield Running(
            process,
            f"http://{found[1]}" if found else "",
            home / "gateway" / "emberd.sock",
            key.read_text().strip() if key.exists() else "",
            log,
        )
    finally:
        process.kill()
        process.wait(timeout=GRACE_S)

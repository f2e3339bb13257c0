"""LiteLLM's proxy as a process, in front of a gateway.

Its pins clash with those of the clients, so it has a separate environment.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

import waiting
from ports import free_port

PROGRAM: Final = Path(sys.prefix).with_name("litellm_proxy") / "bin/litellm"
KEY: Final = "sk-of-the-proxy"
_START_S: Final = 240.0  # its imports take ten seconds of CPU time


@dataclass(frozen=True)
class Proxy:
    """A running proxy.

    Attributes:
        url: Its root.
        log: The file with its output.
    """

    url: str
    log: Path

    def client(self) -> httpx.Client:
        """Return a client that has the key."""
        headers = {"authorization": f"Bearer {KEY}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=100, trust_env=False)


@contextlib.contextmanager
def proxy(config: str, folder: Path, **variables: str) -> Iterator[Proxy]:
    """Run a proxy with this ``config.yaml`` until the end of the block.

    Args:
        config: Content of the file.
        folder: Where the file and the log are written.
        **variables: More variables of its environment.
    """
    path, log = folder / "config.yaml", folder / "litellm.log"
    path.write_text(config, encoding="utf-8")
    port = free_port()
    environment = {
        **os.environ,
        **variables,
        "LITELLM_MASTER_KEY": KEY,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # otherwise it asks GitHub
        "NO_PROXY": "127.0.0.1",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(PROGRAM), "--config", str(path), "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    found = Proxy(f"http://127.0.0.1:{port}", log)
    try:
        with found.client() as client:

            def is_ready() -> bool:
                assert process.poll() is None, log.read_text()[-3000:]
                with contextlib.suppress(httpx.TransportError):
                    return client.get("/health/liveliness").status_code == 200
                return False

            waiting.until(is_ready, _START_S)
        yield found
    finally:
        process.kill()
        process.wait()

"""sglang-router in front of several servers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import waiting
from emberd import probe
from ports import free_port

VERSION: Final = "0.3.2"
_INSTALL_S: Final = 300.0
_START_S: Final = 60.0
_END_S: Final = 30.0


def install(folder: Path) -> str:
    """Install the router into a separate environment; return its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=_INSTALL_S)
    python = str(folder / "bin" / "python")
    wanted = f"sglang-router=={VERSION}"
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", wanted],
        capture_output=True,
        text=True,
        timeout=_INSTALL_S,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return python


@contextmanager
def router(
    python: str, workers: Sequence[str], folder: Path, key: str | None = None
) -> Iterator[str]:
    """Run a router until the end of the ``with``; its root, once it has registered all servers."""
    port = free_port()
    log = folder / f"router-{port}.log"
    command = [
        *(python, "-m", "sglang_router.launch_router", "--worker-urls", *workers),
        *("--policy", "round_robin", "--health-check-endpoint", "/ready"),
        *("--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port())),
        *(("--api-key", key) if key else ()),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    url = f"http://127.0.0.1:{port}"
    try:
        waiting.until(lambda: process.poll() is not None or _takes(url, key, workers), _START_S)
        assert process.poll() is None, log.read_text()[-2000:]
        yield url
    finally:
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_END_S)


def _takes(url: str, key: str | None, workers: Sequence[str]) -> bool:
    reply = probe.get(url, "/workers", key)
    found = reply.json() if reply is not None else None
    listed = found.get("workers", []) if isinstance(found, dict) else []
    return {worker["url"] for worker in listed if worker["is_healthy"]} == set(workers)

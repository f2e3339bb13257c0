"""A distribution called sglang whose server is the fake one, and ``emberd`` on a machine with GPUs.

As a program, it is the command ``emberd`` on a machine that has a disk of 500 GB:
``python -m fake_sglang up --yes``. The GPUs are those of ``write_nvml``.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import tiny_wheels
from fake_nvml import Card

COMMAND_FILE = "TEST_SGLANG_COMMAND"
_PATH = "TEST_SGLANG_PATH"
_DISK_BYTES = 500_000_000_000

_LAUNCH = f"""
import os, sys
sys.path[:0] = os.environ[{_PATH!r}].split(os.pathsep)
import fake_sglang
fake_sglang.serve(sys.argv)
"""
_PYNVML = """
from fake_nvml import Card, Nvml
_nvml = Nvml({cards!r})
def __getattr__(name):
    return getattr(_nvml, name)
"""


def write_wheel(folder: Path, version: str) -> None:
    """Write a wheel of the distribution, with modules of the names that its recipe checks."""
    modules = {"sglang/__init__.py": "", "sglang/launch_server.py": _LAUNCH}
    modules |= {"torch.py": "", "transformers.py": ""}
    tiny_wheels.wheel(folder, "sglang", version, modules)


def write_nvml(folder: Path, cards: Sequence[Card]) -> None:
    """Write a module ``pynvml`` that sees these cards."""
    (folder / "pynvml.py").write_text(_PYNVML.format(cards=list(cards)))


def environment(command_file: Path) -> dict[str, str]:
    """Return the variables that the server needs; it writes its command to ``command_file``."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {COMMAND_FILE: str(command_file), _PATH: path}


def serve(words: Sequence[str]) -> None:
    """Serve until SIGTERM, as the words of SGLang's command line say."""
    from fake_server import FakeServer
    from http_server import Request, reply

    class FakeSglang(FakeServer):
        def _respond(self, request: Request, connection: socket.socket) -> bytes:
            if request.path in ("/ready", "/health", "/metrics"):
                return reply(200, b"")
            return super()._respond(request, connection)

    options = {name: value for name, value in pairwise(words) if name.startswith("--")}
    read: dict[str, Any] = {}
    for line in Path(options["--config"]).read_text().splitlines():
        name, _, value = line.partition(": ")
        read[name] = json.loads(value)
    told = {"command": [sys.executable, *words], "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}
    Path(os.environ[COMMAND_FILE]).write_text(json.dumps(told))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    server = FakeSglang(
        model=options["--served-model-name"],
        dimensions=2560,
        context_tokens=int(options["--context-length"]),
        api_key=read.get("api-key"),
    )
    server.listen(read["port"])
    stop.wait()
    server.die()


if __name__ == "__main__":
    from emberd.system import disk_space

    setattr(disk_space, "free_bytes", lambda _: _DISK_BYTES)  # noqa: B010 - before its importers
    from emberd.cli import main

    sys.exit(main())

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

_COMMANDS = "TEST_SGLANG_COMMANDS"
_TAKEN = "TEST_SGLANG_TAKEN"
_PATH = "TEST_SGLANG_PATH"
_DISK_BYTES = 500_000_000_000

_LAUNCH = f"""
import os, sys
sys.path[:0] = os.environ[{_PATH!r}].split(os.pathsep)
import fake_sglang
fake_sglang.serve(sys.argv)
"""
_PYNVML = """
from pathlib import Path
from fake_nvml import Card, Nvml
_nvml = Nvml({cards!r}, taken=Path({taken!r}))
def __getattr__(name):
    return getattr(_nvml, name)
"""


def write_wheel(folder: Path, version: str) -> None:
    """Write a wheel of the distribution, with modules of the names that its recipe checks."""
    modules = {"sglang/__init__.py": "", "sglang/launch_server.py": _LAUNCH}
    modules |= {"torch.py": "", "transformers.py": ""}
    tiny_wheels.wheel(folder, "sglang", version, modules)


def write_nvml(folder: Path, cards: Sequence[Card], taken: Path) -> None:
    """Write a module ``pynvml`` that sees these cards, and what servers take of them."""
    (folder / "pynvml.py").write_text(_PYNVML.format(cards=list(cards), taken=str(taken)))


def environment(commands: Path, taken: Path) -> dict[str, str]:
    """Return the variables that the server needs.

    Args:
        commands: A folder, where it writes its command to a file named after its model.
        taken: A folder, where it writes how much memory it takes to a file named after its pid.
    """
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {_COMMANDS: str(commands), _TAKEN: str(taken), _PATH: path}


def _take_memory(state_folder: Path) -> None:
    """Take the memory of a server that has loaded its model, by its own plan."""
    planned = json.loads((state_folder / "record.json").read_text())["gpu_memory"]
    taken = Path(os.environ[_TAKEN])
    taken.mkdir(exist_ok=True)
    (taken / str(os.getpid())).write_text(str(planned["loaded_bytes"] if planned else 0))


def serve(words: Sequence[str]) -> None:
    """Serve until SIGTERM, as the words of SGLang's command line say."""
    from emberd import catalog
    from fake_reranker import FakeReranker
    from fake_server import FakeServer
    from http_server import Request, reply

    kind = FakeServer if "--is-embedding" in words else FakeReranker

    class FakeSglang(kind):  # type: ignore[valid-type, misc]
        def _respond(self, request: Request, connection: socket.socket) -> bytes:
            if request.path in ("/ready", "/health", "/metrics"):
                return reply(200, b"")
            answer: bytes = super()._respond(request, connection)
            return answer

    options = {name: value for name, value in pairwise(words) if name.startswith("--")}
    read: dict[str, Any] = {}
    for line in Path(options["--config"]).read_text().splitlines():
        name, _, value = line.partition(": ")
        read[name] = json.loads(value)
    model = options["--served-model-name"]
    told = {"command": [sys.executable, *words], "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}
    commands = Path(os.environ[_COMMANDS])
    commands.mkdir(exist_ok=True)
    (commands / f"{model.replace('/', '--')}.json").write_text(json.dumps(told))
    _take_memory(Path(options["--config"]).parent)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    server = FakeSglang(
        model=model,
        dimensions=catalog.lookup(model).dimensions or 1,
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

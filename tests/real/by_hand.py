"""SGLang as somebody starts it by hand, who has never heard of emberd."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

import waiting
from emberd import probe
from emberd.engines import sglang
from emberd.manager import cleanup
from ports import free_port

START_S: Final = 480.0
POLL_S: Final = 0.25
"""Between two looks at what takes seconds: a look takes time from the server that starts."""

_END_S: Final = 60.0
_KERNELS: Final = Path(sglang.__file__).with_name("cpu")
_MAIN: Final = "sglang.launch_server"
_FORKED: Final = ("sglang_forked",)  # of _KERNELS; it runs the module that follows
_CPU: Final = ("--device", "cpu", "--attention-backend", "torch_native")
_SIZES: Final = ("--max-total-tokens", "65536")


@dataclass(frozen=True)
class ByHand:
    """A server that runs.

    Attributes:
        url: Its root.
        process: Its main process.
        log: What it wrote.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None and probe.is_ready(self.url)


@contextmanager
def server(
    python: str,
    model: Path,
    folder: Path,
    *arguments: str,
    port: int | None = None,
    embeds: bool = True,
    forked: bool = True,
) -> Iterator[ByHand]:
    """Start SGLang on the CPU; end it, and what it leaves in shared memory, afterwards.

    Args:
        python: The interpreter that has SGLang.
        model: The folder of the checkpoint.
        folder: Where its log is written.
        *arguments: Options of SGLang's, after those that all servers are given.
        port: Where it listens; None for a free port.
        embeds: It serves embeddings; False for generated text or scores.
        forked: Its processes are forked, which takes half the processor time of a start; False for
            the plain command of a user.
    """
    port = port or free_port()
    log = folder / f"by-hand-{port}.log"
    command = [
        *(python, "-m", *(_FORKED if forked else ()), _MAIN, "--model-path", str(model)),
        *(("--is-embedding",) if embeds else ()),
        *("--host", "127.0.0.1", "--port", str(port), "--sleep-on-idle"),
        *(*_CPU, *_SIZES, *arguments),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=_environment(), start_new_session=True
        )
    running = ByHand(f"http://127.0.0.1:{port}", process, log)
    memory = cleanup.SharedMemory(f"emberd-{process.pid}")
    try:
        waiting.until(
            lambda: process.poll() is not None or probe.is_ready(running.url),
            START_S,
            poll_s=POLL_S,
        )
        assert process.poll() is None, log.read_text()[-2000:]
        yield running
    finally:
        memory.update(lambda: _family(process.pid), at_once=True)
        _end(process)
        cleanup.remove_files(f"emberd-{process.pid}", memory.known)


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EMBERD_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)  # or each process compiles SGLang again
    return kept | {"SGLANG_USE_CPU_ENGINE": "1", "PYTHONPATH": str(_KERNELS)}


def _family(pid: int) -> Sequence[int]:
    with suppress(psutil.Error):
        main = psutil.Process(pid)
        return [pid, *(child.pid for child in main.children(recursive=True))]
    return []


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(_END_S)

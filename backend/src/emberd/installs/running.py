"""Running an installer: it, and all that it starts, ends with this process however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from emberd.system import pdeathsig

_TICK_S: Final = 1.0


def run(
    command: Sequence[str],
    *,
    python: str,
    environment: Mapping[str, str],
    folder: Path,
    log: Path,
    on_tick: Callable[[], None],
) -> int:
    """Run a program to its end and return its exit code.

    Args:
        command: Program and arguments.
        python: Runs the shim, which ends the whole group when this process is gone. The kernel's
            own death signal reaches one process alone, and ``venv`` has pip as a child.
        environment: The whole environment.
        folder: Where it runs: a project's settings in the caller's folder are none of its.
        log: Takes its output.
        on_tick: Called about once a second.
    """
    read, write = os.pipe()
    try:
        with log.open("ab") as output:
            popen = subprocess.Popen(  # noqa: S603 - the command is ours
                [python, "-I", "-S", pdeathsig.__file__, str(os.getpid()), str(read), *command],
                cwd=folder,
                env=environment,
                pass_fds=[read],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
                stdout=output,
            )
        return _wait(popen, on_tick)
    finally:
        os.close(read)
        os.close(write)


def _wait(popen: subprocess.Popen[bytes], on_tick: Callable[[], None]) -> int:
    try:
        while True:
            try:
                return popen.wait(_TICK_S)
            except subprocess.TimeoutExpired:
                on_tick()
    finally:
        if popen.returncode is None:
            # Ctrl-C came here alone: the group is in a session of its own.
            with suppress(ProcessLookupError):
                os.killpg(popen.pid, signal.SIGKILL)
            popen.wait()

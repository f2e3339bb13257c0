"""Finds processes that tests started and did not end."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import psutil

GRACE_S = 5.0


def find(marks: Iterable[str]) -> list[psutil.Process]:
    """Return the processes that bear one of ``marks`` in their command line or environment.

    This process and its ancestors do not count: a runner may name the folder too.
    """
    wanted = tuple(marks)
    own = {process.pid for process in (psutil.Process(), *psutil.Process().parents())}
    return [
        process
        for process in psutil.process_iter()
        if process.pid not in own and any(mark in _text(process) for mark in wanted)
    ]


def end_all(marks: Iterable[str]) -> list[str]:
    """Wait a little for such processes to end, kill what stays, and return what that was."""
    _, alive = psutil.wait_procs(find(marks), timeout=GRACE_S)
    left = [_described(process) for process in alive]
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=GRACE_S)
    return left


def _text(process: psutil.Process) -> str:
    words: list[str] = []
    # Somebody else's process, or one that ends while it is read: not ours in either case.
    with suppress(psutil.Error, OSError):
        words += process.cmdline()
        words += process.environ().values()
    return "\n".join(words)


def _described(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return f"  {process.pid}: {' '.join(process.cmdline())}"
    return f"  {process.pid}"

"""Finds processes that tests started and did not end."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress

import psutil

from emberd.system import processes

GRACE_S = 5.0


def find(marks: Iterable[str]) -> list[psutil.Process]:
    """Return the processes with one of ``marks`` in their command line or environment.

    This process and its ancestors are excluded: a test runner may name the folder too.
    """
    names = [re.escape(os.fsencode(mark)) for mark in marks if mark]
    if not names:
        return []  # an empty pattern would match every process of the machine
    # Not as the beginning of a longer name: home1 is another folder than home10.
    wanted = re.compile(b"(?:%b)(?![\\w.-])" % b"|".join(names))
    found = [pid for pid in processes.pids() if wanted.search(_text(pid))]
    own = {process.pid for process in (psutil.Process(), *psutil.Process().parents())}
    left = []
    for pid in {*found} - own:
        with suppress(psutil.NoSuchProcess):
            left.append(psutil.Process(pid))
    return left


def end_all(marks: Iterable[str]) -> list[str]:
    """Wait briefly for such processes to end, kill the rest, and describe the killed ones."""
    _, alive = psutil.wait_procs(find(marks), timeout=GRACE_S)
    left = [_described(process) for process in alive]
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=GRACE_S)
    return left


def _text(pid: int) -> bytes:
    # A process of another user, or one that ends while it is read, is not a leftover.
    with suppress(*processes.UNREADABLE):
        words = os.fsencode("\n".join(processes.command_line(pid)))
        return words + b"\n" + processes.environment(pid)
    return b""


def _described(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return f"  {process.pid}: {' '.join(process.cmdline())}"
    return f"  {process.pid}"

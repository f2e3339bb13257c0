"""Finds running servers without a readable record, by liveness lock and mark of their processes.

A running supervisor rewrites a missing or damaged record within a tick or two. If it does not (it
was suspended by a signal, or its disk is full), it can still be found by the lock that it holds, by
its command line, and by the mark in the environment of every process that it started.
"""

from __future__ import annotations

import functools
import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from emberd.catalog import EMBED, MODELS
from emberd.errors import StartTimeoutError, StateFolderError
from emberd.manager import locks, paths, state
from emberd.manager.spawn import GATEWAY_MODULE, SUPERVISOR_MODULE
from emberd.manager.state import ServerSnapshot, ServerStatus, State, Timing, settled_snapshot
from emberd.settings import QUANTIZATIONS, ServerSpec
from emberd.system import processes
from emberd.system.processes import ProcessIdentity

NO_MODEL: Final = "?"
"""Model name of a server whose model is unknown."""

_ARGUMENTS: Final = 3  # folder, start_id, descriptor
_COMMANDS: Final = [["-m", module] for module in (SUPERVISOR_MODULE, GATEWAY_MODULE)]


def find_supervisors(folder: Path, pid: int | None = None) -> dict[ProcessIdentity, str]:
    """Return the processes that are proven to supervise ``folder``: usually one or none.

    Proven means: the process belongs to this user, its command line is that of a supervisor, and
    the descriptor named there is open on the liveness lock file of this folder.

    Args:
        folder: The server's state folder.
        pid: The only process to look at; None for all.

    Returns:
        Process -> the start_id of its start.
    """
    candidates = processes.pids() if pid is None else [pid]
    found = (_supervisor(candidate, folder) for candidate in candidates)
    return dict(each for each in found if each is not None)


def await_record(folder: Path, timing: Timing, deadline_s: float = math.inf) -> ServerSnapshot:
    """Return a snapshot of ``folder``, after waiting for its supervisor to rewrite a lost record.

    Args:
        folder: The server's state folder.
        timing: How long a supervisor may take.
        deadline_s: Latest time to wait until, on the monotonic clock, in seconds.

    Raises:
        StateFolderError: A supervisor did not rewrite its record, or none was found.
        StartTimeoutError: The wait ended at ``deadline_s``, before the supervisor's time was over.
    """
    until_s = time.monotonic() + timing.record_s
    seen = settled_snapshot(folder, min(deadline_s, until_s), timing.poll_s)
    if seen.state is not State.UNKNOWN:
        return seen
    lost = f"{folder / state.RECORD_NAME} is missing or damaged"
    if deadline_s < until_s:
        raise StartTimeoutError(
            f"{lost}, and start_timeout expired before its supervisor rewrote it. Pass a longer "
            f"start_timeout."
        )
    pids = ", ".join(str(supervisor.pid) for supervisor in find_supervisors(folder))
    if not pids:
        lock = locks.liveness_path(folder)
        raise StateFolderError(
            f"{lost}, and {lock} is locked by a process that is not proven to be a supervisor. "
            f"Find it with `fuser {lock}` and end it, then try again."
        )
    raise StateFolderError(
        f"The record of a running server is lost: {lost}, and its supervisor (process {pids}) has "
        f"not rewritten it within {timing.record_s:.0f} s. Run `emberd stop` to end that server, "
        f"then try again."
    )


Marks = Callable[[], Iterable[processes.Mark]]
"""Reads the marked processes, which takes some milliseconds: it reads all processes."""


def marks_read_once() -> Marks:
    """Return what reads the marked processes at its first call, for a loop over many folders."""
    return functools.cache(lambda: list(processes.marks()))


def server_status(seen: ServerSnapshot, marks: Marks) -> ServerStatus | None:
    """Return what is known about a server; None if no server was ever started in its folder.

    Without a record, it is a running supervisor, or orphans of a dead one.

    Args:
        seen: The folder of the server.
        marks: Reads the marked processes.
    """
    if seen.record is not None:
        return seen.status()
    lock = locks.liveness_path(seen.folder)
    # All processes are read only for a folder in which a server was started once.
    is_used = seen.alive or lock.exists()
    folder = str(seen.folder)
    marked = [found.pid for found, marked, _ in marks() if marked == folder] if is_used else []
    if not seen.alive and not marked:
        return None
    import psutil

    supervising = [each.pid for each in find_supervisors(seen.folder)] if seen.alive else []
    seconds = 0.0
    with suppress(IndexError, psutil.Error):
        seconds = max(0.0, time.time() - psutil.Process(supervising[0]).create_time())
    why = "its supervisor does not rewrite it" if seen.alive else "its supervisor is dead"
    pids = ", ".join(map(str, [*supervising, *marked]))
    log = seen.folder / paths.LOG_NAME
    return ServerStatus(
        key=seen.folder.name,
        spec=_spec(seen.folder),
        state=State.UNKNOWN,
        seconds=seconds,
        supervisor_pid=supervising[0] if supervising else None,
        detail=(
            f"its record is lost and {why}; processes: {pids}; run `emberd stop`"
            if pids
            else f"its record is lost; `fuser {lock}` shows which process holds its lock"
        ),
        log_path=str(log) if log.exists() else "",
        start_id=paths.log_start_id(seen.folder) or "",
    )


def _spec(folder: Path) -> ServerSpec:
    # The folder's name is a hash of what determines the vectors; it can only be compared.
    key = folder.name.partition("-")[0]
    precisions = (None, *QUANTIZATIONS)
    specs = (
        ServerSpec(model.name, quantization=p, task=model.task or EMBED)
        for model in MODELS
        for p in precisions
    )
    return next((spec for spec in specs if spec.key == key), ServerSpec(model=NO_MODEL))


def _supervisor(pid: int, folder: Path) -> tuple[ProcessIdentity, str] | None:
    # Identified before its command line is read: if the pid is reused in between, a signal to this
    # identity reaches no process at all.
    identity = processes.identify(pid)
    try:
        if identity is None or not processes.is_own(pid):
            return None
        words = processes.command_line(pid)
        *start, _, start_id, descriptor = words if len(words) > _ARGUMENTS else [""] * _ARGUMENTS
        if start[-2:] not in _COMMANDS or not descriptor.isdigit():
            return None
        holds = _has_open(pid, int(descriptor), locks.liveness_path(folder))
    except OSError:
        return None
    return (identity, start_id) if holds else None


def _has_open(pid: int, descriptor: int, file: Path) -> bool:
    if sys.platform == "linux":
        return os.path.samestat(os.stat(f"/proc/{pid}/fd/{descriptor}"), file.lstat())
    import psutil

    with suppress(psutil.Error):
        return any(
            opened.fd == descriptor and os.path.samestat(os.stat(opened.path), file.lstat())
            for opened in psutil.Process(pid).open_files()
        )
    return False

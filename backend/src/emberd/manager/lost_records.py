"""Finds servers whose record is lost, by their liveness lock and the mark of their processes.

A running supervisor rewrites a missing or damaged record within a tick or two. If it does not (it
was suspended by a signal, or its disk is full), it can still be found by the lock that it holds, by
its command line, and by the mark in the environment of every process that it started.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

from emberd.catalog import MODELS
from emberd.errors import StartTimeoutError, StateFolderError
from emberd.manager import liveness, paths, state
from emberd.manager.spawn import SUPERVISOR_MODULE
from emberd.manager.state import ServerSnapshot, ServerStatus, State, Timing, settled_snapshot
from emberd.settings import ServerSpec
from emberd.system import processes
from emberd.system.processes import ProcessIdentity

if TYPE_CHECKING:
    import psutil

NO_MODEL: Final = "?"
"""Model name of a server whose model is unknown."""

_LOG: Final = logging.getLogger("emberd")
_ARGUMENTS: Final = 3  # folder, start_id, descriptor


@dataclass(frozen=True, slots=True)
class SupervisorProcess:
    """A process that is proven to be the supervisor of a state folder.

    Attributes:
        identity: The process.
        start_id: The id of its start.
    """

    identity: ProcessIdentity
    start_id: str


class MarkedProcesses:
    """The marked processes of this user, read once, at the first use."""

    @cached_property
    def _by_folder(self) -> dict[str, list[tuple[ProcessIdentity, str]]]:
        found: dict[str, list[tuple[ProcessIdentity, str]]] = {}
        for identity, folder, start_id in processes.marks():
            found.setdefault(folder, []).append((identity, start_id))
        return found

    def pids(self, folder: Path) -> list[int]:
        """Return the pids of the processes with the mark of ``folder``."""
        return [identity.pid for identity, _ in self._by_folder.get(str(folder), [])]

    def start_ids(self, folder: Path) -> set[str]:
        """Return the ids of the starts to which these processes belong."""
        return {start_id for _, start_id in self._by_folder.get(str(folder), [])}


def find_supervisors(folder: Path) -> list[SupervisorProcess]:
    """Return the processes that are proven to supervise ``folder``: usually one or none.

    Proven means: the process belongs to this user, its command line is that of a supervisor, and
    the descriptor named there is open on the liveness lock file of this folder.
    """
    import psutil

    found = (_supervisor(candidate, folder) for candidate in psutil.process_iter())
    return [each for each in found if each is not None]


def prove_supervisor(identity: ProcessIdentity, folder: Path) -> SupervisorProcess | None:
    """Return the process as the supervisor of ``folder``; None if that cannot be proven."""
    import psutil

    try:
        found = _supervisor(psutil.Process(identity.pid), folder)
    except psutil.Error:
        return None
    return found if found is not None and found.identity == identity else None


def await_records(chosen: Iterable[Path], timing: Timing, deadline_s: float = math.inf) -> None:
    """Wait until the supervisors of these folders have rewritten lost records.

    Args:
        chosen: State folders.
        timing: How long a supervisor may take.
        deadline_s: Latest time to wait until, on the monotonic clock, in seconds.

    Raises:
        StateFolderError: A supervisor did not rewrite its record, or none was found.
        StartTimeoutError: The wait ended at ``deadline_s``, before the supervisor's time was over.
    """
    for folder in chosen:
        await_record(folder, timing, deadline_s)


def await_record(folder: Path, timing: Timing, deadline_s: float = math.inf) -> ServerSnapshot:
    """Do the same as ``await_records`` for one folder, and return its snapshot."""
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
    pids = ", ".join(str(each.identity.pid) for each in find_supervisors(folder))
    if not pids:
        lock = liveness.path(folder)
        raise StateFolderError(
            f"{lost}, and {lock} is locked by a process that is not proven to be a supervisor. "
            f"Find it with `fuser {lock}` and end it, then try again."
        )
    raise StateFolderError(
        f"The record of a running server is lost: {lost}, and its supervisor (process {pids}) has "
        f"not rewritten it within {timing.record_s:.0f} s. Run `emberd stop` to end that server, "
        f"then try again."
    )


def server_statuses(chosen: Iterable[Path], timing: Timing) -> list[ServerStatus]:
    """Return what is known about the servers of these folders; skip folders of other users.

    Lost records are awaited for ``timing.record_s`` seconds, for all folders together.
    """
    known, marks = [], MarkedProcesses()
    deadline_s = time.monotonic() + timing.record_s
    for folder in chosen:
        try:
            known.append(server_status(settled_snapshot(folder, deadline_s, timing.poll_s), marks))
        except StateFolderError as error:
            _LOG.warning("%s", error)  # one unusable folder does not hide the others
    return [each for each in known if each is not None]


def server_status(seen: ServerSnapshot, marks: MarkedProcesses) -> ServerStatus | None:
    """Return what is known about a server; None if no server was ever started in its folder.

    Without a record, it is a running supervisor, or orphans of a dead one.
    """
    if seen.record is not None:
        return seen.status()
    left = marks.pids(seen.folder) if seen.alive or _was_used(seen.folder) else []
    if not seen.alive and not left:
        return None
    pids = [each.identity.pid for each in find_supervisors(seen.folder)] if seen.alive else []
    log = seen.folder / paths.LOG_NAME
    return ServerStatus(
        key=seen.folder.name,
        spec=_spec(seen.folder),
        state=State.UNKNOWN,
        seconds=_age_s(pids),
        url=None,
        engine=None,
        device=None,
        origin="own",
        supervisor_pid=pids[0] if pids else None,
        idle_timeout=None,
        detail=_detail(seen, pids, left),
        log_path=str(log) if log.exists() else "",
        start_id=paths.log_start_id(seen.folder) or "",
    )


def _detail(seen: ServerSnapshot, supervising: list[int], marked: list[int]) -> str:
    why = "its supervisor does not rewrite it" if seen.alive else "its supervisor is dead"
    pids = ", ".join(map(str, chain(supervising, marked)))
    if not pids:
        lock = liveness.path(seen.folder)
        return f"its record is lost; `fuser {lock}` shows which process holds its lock"
    return f"its record is lost and {why}; processes: {pids}; run `emberd stop`"


def _spec(folder: Path) -> ServerSpec:
    # The folder's name is a hash of the model and its revision; it can only be compared.
    key = folder.name.partition("-")[0]
    specs = (ServerSpec(model=model.name) for model in MODELS)
    return next((spec for spec in specs if spec.key == key), ServerSpec(model=NO_MODEL))


def _age_s(pids: list[int]) -> float:
    import psutil

    try:
        return max(0.0, time.time() - psutil.Process(pids[0]).create_time())
    except (IndexError, psutil.Error):
        return 0.0


def _was_used(folder: Path) -> bool:
    # All processes are read only for a folder in which a server was started once.
    return liveness.path(folder).exists()


def _supervisor(candidate: psutil.Process, folder: Path) -> SupervisorProcess | None:
    import psutil

    # Identified before its command line is read: if the pid is reused in between, a signal to this
    # identity reaches no process at all.
    identity = processes.identify(candidate.pid)
    try:
        if identity is None or candidate.uids().real != os.getuid():
            return None
        words = candidate.cmdline()
        *start, _, start_id, descriptor = words if len(words) > _ARGUMENTS else [""] * _ARGUMENTS
        if start[-2:] != ["-m", SUPERVISOR_MODULE] or not descriptor.isdigit():
            return None
        holds = _has_open(candidate, int(descriptor), liveness.path(folder))
    except (psutil.Error, OSError):
        return None
    return SupervisorProcess(identity, start_id) if holds else None


def _has_open(candidate: psutil.Process, descriptor: int, file: Path) -> bool:
    if sys.platform == "linux":
        return os.path.samestat(os.stat(f"/proc/{candidate.pid}/fd/{descriptor}"), file.lstat())
    return any(
        opened.fd == descriptor and os.path.samestat(os.stat(opened.path), file.lstat())
        for opened in candidate.open_files()
    )

"""Servers whose record is lost: found by their liveness lock and by the mark of their processes.

A living supervisor rewrites a record that is missing or damaged within a tick or two. If it does
not (it is stopped by a signal, or its disk is full), what remains is the lock that it holds, its
command line, and the mark in the environment of every process that it started.
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
"""What stands for the model of a server if nothing tells which one it serves."""

_LOG: Final = logging.getLogger("emberd")
_ARGUMENTS: Final = 3  # folder, start_id, descriptor


@dataclass(frozen=True, slots=True)
class SupervisorProcess:
    """A process that proved to be the supervisor of a state folder.

    Attributes:
        identity: The process.
        start_id: The name of its start.
    """

    identity: ProcessIdentity
    start_id: str


class Marks:
    """The marked processes of this user, read once, when they are first asked for."""

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
        """Return the starts to which they belong."""
        return {start_id for _, start_id in self._by_folder.get(str(folder), [])}


def supervisors(folder: Path) -> list[SupervisorProcess]:
    """Return the processes that are proven to supervise ``folder``: almost always one or none.

    Proven means: it belongs to this user, its command line is that of a supervisor, and the
    descriptor named there is open on the very file whose lock shows that a supervisor lives.
    """
    import psutil

    found = (_supervisor(candidate, folder) for candidate in psutil.process_iter())
    return [each for each in found if each is not None]


def supervisor(identity: ProcessIdentity, folder: Path) -> SupervisorProcess | None:
    """Return the process as the supervisor of ``folder``; None if that cannot be proven."""
    import psutil

    try:
        found = _supervisor(psutil.Process(identity.pid), folder)
    except psutil.Error:
        return None
    return found if found is not None and found.identity == identity else None


def await_records(chosen: Iterable[Path], timing: Timing, deadline_s: float = math.inf) -> None:
    """Wait until the supervisors of these folders have rewritten records that are lost.

    Args:
        chosen: State folders.
        timing: How long a supervisor may take.
        deadline_s: When to give up in any case, on the monotonic clock, in seconds.

    Raises:
        StateFolderError: A supervisor did not rewrite its record, or none was found.
        StartTimeoutError: The wait ended at ``deadline_s``, sooner than a supervisor may take.
    """
    for folder in chosen:
        await_record(folder, timing, deadline_s)


def await_record(folder: Path, timing: Timing, deadline_s: float = math.inf) -> ServerSnapshot:
    """Do as ``await_records`` for one folder, and return what it holds then."""
    until_s = time.monotonic() + timing.record_s
    view = settled_snapshot(folder, min(deadline_s, until_s), timing.poll_s)
    if view.state is not State.UNKNOWN:
        return view
    lost = f"{folder / state.RECORD_NAME} is missing or damaged"
    if deadline_s < until_s:
        raise StartTimeoutError(
            f"{lost}, and start_timeout ended the wait for its supervisor to rewrite it. Give a "
            f"longer start_timeout."
        )
    pids = ", ".join(str(each.identity.pid) for each in supervisors(folder))
    if not pids:
        lock = liveness.path(folder)
        raise StateFolderError(
            f"{lost}, and {lock} is locked by a process that is not proven to be emberd's. "
            f"`fuser {lock}` names it: end it, then try again."
        )
    raise StateFolderError(
        f"A server runs whose record is lost: {lost}, and its supervisor (process {pids}) has not "
        f"rewritten it within {timing.record_s:.0f} s. Run `emberd stop` to end that server, then "
        f"try again."
    )


def statuses(chosen: Iterable[Path], timing: Timing) -> list[ServerStatus]:
    """Return what is known of the servers of these folders; a folder that is not ours is skipped.

    Records that are lost are waited for, ``timing.record_s`` seconds for all of them together.
    """
    known, marks = [], Marks()
    deadline_s = time.monotonic() + timing.record_s
    for folder in chosen:
        try:
            known.append(status(settled_snapshot(folder, deadline_s, timing.poll_s), marks))
        except StateFolderError as error:
            _LOG.warning("%s", error)  # one odd folder does not hide the others
    return [each for each in known if each is not None]


def status(view: ServerSnapshot, marks: Marks) -> ServerStatus | None:
    """Return what is known of a server; None when nothing ever started in its folder.

    Without a record: a supervisor that lives, or processes that a dead one left.
    """
    if view.record is not None:
        return view.status()
    left = marks.pids(view.folder) if view.alive or _was_used(view.folder) else []
    if not view.alive and not left:
        return None
    pids = [each.identity.pid for each in supervisors(view.folder)] if view.alive else []
    log = view.folder / paths.LOG_NAME
    return ServerStatus(
        key=view.folder.name,
        spec=_spec(view.folder),
        state=State.UNKNOWN,
        seconds=_age_s(pids),
        url=None,
        engine=None,
        device=None,
        origin="own",
        supervisor_pid=pids[0] if pids else None,
        idle_timeout=None,
        detail=_detail(view, pids, left),
        log_path=str(log) if log.exists() else "",
        start_id=paths.log_start_id(view.folder) or "",
    )


def _detail(view: ServerSnapshot, supervising: list[int], marked: list[int]) -> str:
    who = "its supervisor does not rewrite it" if view.alive else "its supervisor is dead"
    pids = ", ".join(map(str, chain(supervising, marked)))
    if not pids:
        return (
            f"its record is lost, and `fuser {liveness.path(view.folder)}` names who holds its lock"
        )
    return f"its record is lost and {who}; processes: {pids}; run `emberd stop`"


def _spec(folder: Path) -> ServerSpec:
    # The folder's name stands for the model and its revision; it can be compared, not read.
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
    # A folder in which nothing was ever started is not worth a look at all processes.
    return liveness.path(folder).exists()


def _supervisor(candidate: psutil.Process, folder: Path) -> SupervisorProcess | None:
    import psutil

    # Identified before its command line is read: if the pid changes hands in between, a signal to
    # this identity reaches no process at all.
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

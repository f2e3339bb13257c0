"""Stops a server on request.

A signal is sent only to a process that is proven to supervise this folder: a record may be damaged,
or a copy of another one, so its content is compared with the process itself.
"""

from __future__ import annotations

import time
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGTERM
from typing import Final

from emberd.engines.base import DRAIN_S
from emberd.errors import StartError, StateFolderError
from emberd.manager import history, locks, lost_records, state
from emberd.manager.state import ServerSnapshot, ServerStatus, State, Timing
from emberd.system import processes
from emberd.system.processes import ProcessIdentity

_MARGIN_S: Final = 10.0
_UNKNOWN_DRAIN_S: Final = 2 * DRAIN_S  # the longest of all engines


def stop(
    folder: Path, timing: Timing, deadline_s: float, marks: lost_records.Marks
) -> ServerStatus | None:
    """Stop the server of ``folder``, wait until it has ended, and return its last status.

    The record of an external server is deleted; the server itself is never stopped. A supervisor
    that does not end is killed, and its server with it. If its record is lost, or was written by
    another version, it is found by the lock that it holds. Orphans of a dead supervisor are only
    reported here; the sweep that follows a stop ends them.

    Args:
        folder: The server's state folder.
        timing: How long each step may take.
        deadline_s: How long to wait for a lost record, on the monotonic clock, in seconds.
        marks: Reads the marked processes, for a folder without a record.

    Returns:
        None if there was no server.

    Raises:
        StartError: Processes of the server cannot be ended.
        StateFolderError: A process holds the liveness lock and is not proven to be a supervisor.
    """
    seen = _settled(folder, deadline_s, timing)
    was = lost_records.server_status(seen, marks)
    if was is None:
        return None
    if seen.record is not None and seen.record.found:
        with locks.liveness_lock(folder) as is_free:
            if is_free:
                (folder / state.RECORD_NAME).unlink(missing_ok=True)
        return was
    if not seen.alive:
        return was if was.state is State.UNKNOWN else None
    if seen.record is not None:
        drain_s, start_ids = seen.record.drain_s, {was.start_id}
    else:
        # Read now: once the lock is free, another start may begin in this folder.
        now = processes.marks()
        start_ids = {start_id for _, marked, start_id in now if marked == str(folder)}
        drain_s = _UNKNOWN_DRAIN_S
    found = _supervisors(seen, timing)
    if not found:  # before anything is killed: the lock may be held by an unproven process
        _check_released(folder, was, timing)
    history.note(folder, history.STOP_REQUESTED, seen.record, **history.by_this_process())
    for supervisor in found:
        _end(supervisor, drain_s, timing)
    for start_id in set(found.values()) or start_ids:
        if left := processes.end_marked(str(folder), timing.kill_s, start_id):
            raise StartError(
                f"Some processes of the server cannot be ended: {', '.join(map(str, left))}",
                advice="They are blocked in the kernel (a hung disk or GPU driver); check dmesg.",
            )
    return was


def end_supervisor(seen: ServerSnapshot) -> None:
    """Kill a supervisor that has not noticed that its server refuses connections."""
    named = seen.record.supervisor if seen.record is not None else None
    if named is not None and named in lost_records.find_supervisors(seen.folder, named.pid):
        why = "it has not noticed that its server refuses connections"
        who = history.by_this_process()
        history.note(seen.folder, history.SUPERVISOR_STUCK, seen.record, cause=why, **who)
        processes.send(named, SIGKILL)


def _settled(folder: Path, deadline_s: float, timing: Timing) -> ServerSnapshot:
    try:
        return state.settled_snapshot(folder, deadline_s, timing.poll_s)
    except state.OtherVersionError:
        return ServerSnapshot(folder, None, alive=True)  # treated as a lost record


def _supervisors(seen: ServerSnapshot, timing: Timing) -> dict[ProcessIdentity, str]:
    # At first the record is written by the starting process and names no supervisor yet.
    deadline = time.monotonic() + timing.takeover_s
    while seen.alive and seen.record is not None and time.monotonic() < deadline:
        if (named := seen.record.supervisor) is not None:
            found = lost_records.find_supervisors(seen.folder, named.pid)
            if named in found:
                return {named: found[named]}
            break
        time.sleep(timing.poll_s)
        seen = state.snapshot(seen.folder)
    return lost_records.find_supervisors(seen.folder)


def _end(supervisor: ProcessIdentity, drain_s: float, timing: Timing) -> None:
    # A process that SIGSTOP has suspended handles SIGTERM only once SIGCONT continues it.
    orderly = (SIGTERM, SIGCONT), drain_s + timing.kill_s + _MARGIN_S
    for signals, seconds in (orderly, ((SIGKILL,), timing.kill_s)):
        for signum in signals:
            processes.send(supervisor, signum)
        deadline = time.monotonic() + seconds
        # The end of this process, not the release of the liveness lock: the next supervisor may
        # already hold that.
        while supervisor.is_running() and time.monotonic() < deadline:
            time.sleep(timing.poll_s)


def _check_released(folder: Path, was: ServerStatus, timing: Timing) -> None:
    # A supervisor that is ending no longer has the command line that would prove it, and holds the
    # lock for some milliseconds longer. Another one may have started since.
    deadline = time.monotonic() + timing.kill_s
    while True:
        seen = _settled(folder, deadline, timing)
        if not seen.alive or (seen.record is not None and seen.record.start_id != was.start_id):
            return
        if time.monotonic() > deadline:
            break
        time.sleep(timing.poll_s)
    lock = locks.liveness_path(folder)
    raise StateFolderError(
        f"{lock} is locked by a process that is not proven to be a supervisor, so nothing was "
        f"stopped. Find it with `fuser {lock}` and end it, or wait."
    )

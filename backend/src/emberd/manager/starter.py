"""Starting a supervisor under the start lock, after whatever an earlier one left is gone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from emberd.errors import LockTimeoutError, StartError, StateFolderError
from emberd.manager import alive, folders, idle, launch, leftovers, locks, record
from emberd.manager.folders import Home
from emberd.manager.record import Record, State
from emberd.manager.timing import Timing
from emberd.settings import ServerSpec, StartOptions
from emberd.system import processes

_TAKEOVER_POLL_S: Final = 0.01


def start(
    folder: Path,
    spec: ServerSpec,
    engine: str,
    timing: Timing,
    *,
    idle_timeout_s: float | None,
    options: StartOptions,
) -> str:
    """Start a supervisor in ``folder`` and return the start_id of this start.

    The caller holds the start lock and keeps it until this returns: the supervisor's own first
    record is there then.

    Raises:
        StartError: The supervisor could not be run, or a supervisor lives in that folder after all.
    """
    descriptor = alive.take(folder)
    if descriptor is None:
        raise StartError(f"{folder} was taken meanwhile", advice="Try again.")
    try:
        start_id = processes.new_start_id()
        log = folders.rotate_log(folder, start_id)
        idle.begin(folder, idle_timeout_s)
        before = record.read_last(folder)
        # Counted before the attempt: a supervisor that the kernel kills writes nothing any more.
        attempts = 1 + (before.attempts if before is not None and _failed(before) else 0)
        first = Record(
            state=State.STARTING,
            start_id=start_id,
            spec=spec,
            timing=timing,
            since_s=time.monotonic(),
            attempts=attempts,
            engine=engine,
            log_path=str(log),
            options=options,
        )
        record.write(folder, first)
        launch.start_supervisor(folder, start_id, descriptor, log)
    finally:
        # The supervisor holds the same open file; from here on it is the only one.
        alive.release(descriptor)
    _await_takeover(folder, start_id, timing)
    return start_id


def sweep(home: Home, timing: Timing, *, locked: Path | None = None) -> None:
    """End processes that servers left behind although their supervisors are gone.

    Only what is provably ours: it bears the mark of a folder of this home, whose supervisor is dead
    and whose start lock we hold, so that no new supervisor can appear in it meanwhile.

    Args:
        home: The home whose folders are swept.
        timing: How long killed processes may take to be gone: a start that measures memory
            before they are would count theirs as taken.
        locked: The folder whose start lock the caller holds already.
    """
    for folder in home.all():
        lock_folder = home.first_slot(folder)
        if lock_folder == locked:
            _end_leftovers(folder, timing)
            continue
        try:
            with locks.start_lock(folders.make_private(lock_folder), timeout_s=0):
                _end_leftovers(folder, timing)
        except (LockTimeoutError, StateFolderError):
            # Somebody is starting there, and sweeps it himself; or the folder is not ours.
            continue


def _end_leftovers(folder: Path, timing: Timing) -> None:
    if not alive.is_held(folder):
        leftovers.end(folder, timing)


def _failed(before: Record) -> bool:
    # Attempts that somebody stopped, or that are long past, say nothing about this one.
    recent = time.monotonic() - before.since_s <= before.timing.cool_down_s
    return recent and before.state in (State.STARTING, State.FAILED)


def _await_takeover(folder: Path, start_id: str, timing: Timing) -> None:
    deadline = time.monotonic() + timing.takeover_s
    while time.monotonic() < deadline:
        own = record.read(folder)
        if own is None or own.start_id != start_id or own.supervisor is not None:
            return
        if not alive.is_held(folder):
            return  # the supervisor is gone already; whoever waits for it sees that too
        time.sleep(_TAKEOVER_POLL_S)

"""Starting a keeper under the start lock, after whatever an earlier one left is gone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from emberd.errors import LockTimeoutError, StartError, StateFolderError
from emberd.manager import alive, folders, idle, launch, leftovers, locks, process, record
from emberd.manager.folders import Home
from emberd.manager.record import Record, State
from emberd.manager.timing import Timing
from emberd.settings import ServerSpec
from emberd.startup import StartOptions

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
    """Start a keeper in ``folder`` and return the nonce of this start.

    The caller holds the start lock and keeps it until this returns: the keeper's own first
    record is there then.

    Raises:
        StartError: The keeper could not be run, or a keeper lives in that folder after all.
    """
    descriptor = alive.take(folder)
    if descriptor is None:
        raise StartError(f"{folder} was taken meanwhile", advice="Try again.")
    try:
        nonce = process.new_nonce()
        log = folders.rotate_log(folder, nonce)
        idle.begin(folder, idle_timeout_s)
        before = record.read_last(folder)
        # Counted before the attempt: a keeper that the kernel kills writes nothing any more.
        attempts = 1 + (before.attempts if before is not None and _failed(before) else 0)
        first = Record(
            state=State.STARTING,
            nonce=nonce,
            spec=spec,
            timing=timing,
            since_s=time.monotonic(),
            attempts=attempts,
            engine=engine,
            log_path=str(log),
            options=options,
        )
        record.write(folder, first)
        launch.start_keeper(folder, nonce, descriptor, log)
    finally:
        # The keeper holds the same open file; from here on it is the only one.
        alive.release(descriptor)
    _await_takeover(folder, nonce, timing)
    return nonce


def sweep(home: Home, timing: Timing, *, locked: Path | None = None) -> None:
    """End processes that servers left behind although their keepers are gone.

    Only what is provably ours: it bears the mark of a folder of this home, whose keeper is dead
    and whose start lock we hold, so that no new keeper can appear in it meanwhile.

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


def _await_takeover(folder: Path, nonce: str, timing: Timing) -> None:
    deadline = time.monotonic() + timing.takeover_s
    while time.monotonic() < deadline:
        own = record.read(folder)
        if own is None or own.nonce != nonce or own.keeper is not None:
            return
        if not alive.is_held(folder):
            return  # the keeper is gone already; whoever waits for it sees that too
        time.sleep(_TAKEOVER_POLL_S)

"""Starting a keeper under the start lock, after whatever an earlier one left is gone."""

from __future__ import annotations

import time
from pathlib import Path
from signal import SIGKILL
from typing import Final

from emberd.errors import LockTimeoutError, StartError
from emberd.manager import alive, folders, idle, launch, locks, process, record
from emberd.manager.folders import Home
from emberd.manager.record import Record, State
from emberd.manager.timing import Timing
from emberd.settings import ServerSpec

_TAKEOVER_POLL_S: Final = 0.01


def start(
    folder: Path, spec: ServerSpec, engine: str, timing: Timing, idle_timeout_s: float | None
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
        before = record.read(folder)
        # Counted before the attempt: a keeper that the kernel kills writes nothing any more.
        attempts = 1 + (before.attempts if before is not None else 0)
        first = Record(
            state=State.STARTING,
            nonce=nonce,
            spec=spec,
            timing=timing,
            since_s=time.monotonic(),
            attempts=attempts,
            engine=engine,
            log_path=str(log),
        )
        record.write(folder, first)
        launch.start_keeper(folder, nonce, descriptor, log)
    finally:
        # The keeper holds the same open file; from here on it is the only one.
        alive.release(descriptor)
    _await_takeover(folder, nonce, timing)
    return nonce


def sweep(home: Home, *, locked: Path | None = None) -> None:
    """End processes that servers left behind although their keepers are gone.

    Only what is provably ours: it bears the mark of a folder of this home, whose keeper is dead
    and whose start lock we hold, so that no new keeper can appear in it meanwhile.

    Args:
        home: The home whose folders are swept.
        locked: The folder whose start lock the caller holds already.
    """
    for folder in home.all():
        lock_folder = home.first_slot(folder)
        if lock_folder == locked:
            _end_leftovers(folder)
            continue
        try:
            with locks.start_lock(lock_folder, timeout_s=0):
                _end_leftovers(folder)
        except LockTimeoutError:
            continue  # somebody is starting there, and sweeps it himself


def _end_leftovers(folder: Path) -> None:
    if alive.is_held(folder):
        return
    for leftover in process.marked(str(folder)):
        process.send(leftover, SIGKILL)


def _await_takeover(folder: Path, nonce: str, timing: Timing) -> None:
    deadline = time.monotonic() + timing.takeover_s
    while time.monotonic() < deadline:
        own = record.read(folder)
        if own is None or own.nonce != nonce or own.keeper is not None:
            return
        if not alive.is_held(folder):
            return  # the keeper is gone already; whoever waits for it sees that too
        time.sleep(_TAKEOVER_POLL_S)

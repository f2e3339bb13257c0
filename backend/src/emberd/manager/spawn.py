"""Starting a supervisor: a process of its own that survives whoever asked for it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from emberd.errors import LockTimeoutError, StartError, StateFolderError
from emberd.manager import cleanup, idle, liveness, locks, paths, state
from emberd.manager.paths import Home
from emberd.manager.state import Record, State, Timing
from emberd.settings import ServerSpec, StartOptions
from emberd.system import processes

SUPERVISOR_MODULE: Final = "emberd.verified_manager"


def start_supervisor(folder: Path, start_id: str, alive_fd: int, log: Path) -> None:
    """Start the supervisor of ``folder`` and hand it the proof of life.

    The supervisor forks once more by itself, so this returns as soon as its first process is gone,
    and nobody but init is its parent: no zombie stays with the caller.

    Args:
        folder: The server's state folder.
        start_id: The name of this start.
        alive_fd: Descriptor that holds the proof of life; it is inherited, never unlocked.
        log: The server's log, which takes what the supervisor has to say.

    Raises:
        StartError: It could not be run.
    """
    if not sys.executable:
        raise StartError(
            "This Python is embedded and names no interpreter to run a supervisor with",
            advice="Run `emberd up` in a terminal first, or give base_url=.",
        )
    command = [sys.executable, "-P", "-m", SUPERVISOR_MODULE, str(folder), start_id, str(alive_fd)]
    with log.open("ab") as output:
        result = subprocess.run(  # noqa: S603 - our own module
            command,
            # The caller's streams stay the caller's: `eval "$(emberd env)"` waits for every
            # process that holds its pipe.
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[alive_fd],
            start_new_session=True,
            cwd="/",
            env=_environment(),
            check=False,
        )
    if result.returncode != 0:
        raise StartError(
            f"The supervisor could not be run (exit code {result.returncode})",
            advice=f"Try: {sys.executable} -c 'import {SUPERVISOR_MODULE}'",
            log_path=str(log),
        )


def _environment() -> dict[str, str]:
    # A caller that some other server started bears that one's mark; a supervisor must bear none.
    kept = {name: value for name, value in os.environ.items() if name != processes.MARK}
    # The supervisor finds emberd, and an engine named by its module, wherever the caller does: also
    # in a folder that only sys.path of the caller knows.
    return kept | {"PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path)}


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
    descriptor = liveness.take(folder)
    if descriptor is None:
        raise StartError(f"{folder} was taken meanwhile", advice="Try again.")
    try:
        start_id = processes.new_start_id()
        log = paths.rotate_log(folder, start_id)
        idle.begin(folder, idle_timeout_s)
        before = state.read_last_record(folder)
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
        state.write_record(folder, first)
        start_supervisor(folder, start_id, descriptor, log)
    finally:
        # The supervisor holds the same open file; from here on it is the only one.
        liveness.release(descriptor)
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
            with locks.start_lock(paths.make_private(lock_folder), timeout_s=0):
                _end_leftovers(folder, timing)
        except (LockTimeoutError, StateFolderError):
            # Somebody is starting there, and sweeps it himself; or the folder is not ours.
            continue


def _end_leftovers(folder: Path, timing: Timing) -> None:
    if not liveness.is_held(folder):
        cleanup.end(folder, timing)


def _failed(before: Record) -> bool:
    # Attempts that somebody stopped, or that are long past, say nothing about this one.
    recent = time.monotonic() - before.since_s <= before.timing.cool_down_s
    return recent and before.state in (State.STARTING, State.FAILED)


def _await_takeover(folder: Path, start_id: str, timing: Timing) -> None:
    deadline = time.monotonic() + timing.takeover_s
    while time.monotonic() < deadline:
        own = state.read_record(folder)
        if own is None or own.start_id != start_id or own.supervisor is not None:
            return
        if not liveness.is_held(folder):
            return  # the supervisor is gone already; whoever waits for it sees that too
        time.sleep(_TAKEOVER_POLL_S)

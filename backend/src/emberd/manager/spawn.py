"""Spawns a supervisor as a process that outlives its caller, which holds the start lock."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Final

from emberd.errors import LockTimeoutError, StartError, StateFolderError
from emberd.manager import cleanup, idle, locks, paths, state
from emberd.manager.paths import Home
from emberd.manager.state import Record, State, Timing
from emberd.settings import ServerSpec, StartOptions
from emberd.system import atomic_file, os_errors, processes

SUPERVISOR_MODULE: Final = "emberd.verified_manager"

_TAKEOVER_POLL_S: Final = 0.01


def start_supervisor(
    folder: Path,
    spec: ServerSpec,
    engine: str,
    timing: Timing,
    *,
    idle_timeout_s: float,
    options: StartOptions,
) -> str:
    """Start a supervisor in ``folder`` and return the start_id of this start.

    The caller holds the start lock until this returns; by then the supervisor has published its
    first record.

    Raises:
        StartError: The supervisor could not be run, or another one runs in that folder.
    """
    descriptor = locks.take_liveness(folder)
    if descriptor is None:
        raise StartError(f"Another process started a server in {folder}", advice="Try again.")
    try:
        # A supervisor that was killed while it wrote its record may have left a part of it.
        for unfinished in folder.glob(f".*{atomic_file.UNFINISHED}"):
            paths.remove(unfinished)
        start_id = processes.new_start_id()
        log = paths.rotate_log(folder, start_id)
        idle.reset(folder, idle_timeout_s)
        before = state.read_last_record(folder)
        # Counted before the attempt: a supervisor that is killed writes nothing any more. Attempts
        # that were stopped on request, or are long past, do not count.
        attempts = 1
        if (
            before is not None
            and before.state in (State.STARTING, State.FAILED)
            and time.monotonic() - before.since_s <= before.timing.cool_down_s
        ):
            attempts += before.attempts
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
        try:
            run_supervisor(folder, start_id, descriptor, log)
        except OSError as error:
            raise StartError(
                f"The supervisor could not be run: {error}", advice=os_errors.advice(error)
            ) from error
    finally:
        # The supervisor has the same open file; from here on it is the only holder.
        locks.release(descriptor)
    _await_takeover(folder, start_id, timing)
    return start_id


def run_supervisor(folder: Path, start_id: str, alive_fd: int, log: Path) -> None:
    """Run the supervisor of ``folder`` and hand the liveness lock over to it.

    The supervisor forks once more, so this returns as soon as its first process has ended, and
    init becomes the parent: no zombie is left to the caller.

    Args:
        folder: The server's state folder.
        start_id: The id of this start.
        alive_fd: Descriptor that holds the liveness lock; it is inherited and never unlocked.
        log: The server's log, which also gets the supervisor's output.

    Raises:
        StartError: It could not be run.
    """
    if not sys.executable:
        raise StartError(
            "This Python is embedded and has no interpreter that could run a supervisor",
            advice="Run `emberd up` in a terminal first, or pass base_url=.",
        )
    command = [sys.executable, "-P", "-m", SUPERVISOR_MODULE, str(folder), start_id, str(alive_fd)]
    # The supervisor must find emberd, and an engine that is named by its module, as the caller
    # does, also in a folder that only the caller's sys.path contains. If another server started the
    # caller, it has that server's mark; a supervisor must have none.
    environment = {name: value for name, value in os.environ.items() if name != processes.MARK}
    environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    with log.open("ab") as output:
        result = subprocess.run(  # noqa: S603 - our own module
            command,
            # The caller's streams are not inherited: `eval "$(emberd env)"` waits for every
            # process that holds its pipe.
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[alive_fd],
            start_new_session=True,
            cwd="/",
            env=environment,
            check=False,
        )
    if result.returncode != 0:
        raise StartError(
            f"The supervisor could not be run (exit code {result.returncode})",
            advice=f"Try: {sys.executable} -c 'import {SUPERVISOR_MODULE}'",
            log_path=str(log),
        )


def sweep(home: Home, timing: Timing, *, locked: Path | None = None) -> None:
    """End processes of servers whose supervisors are dead, and remove their files.

    Only what is proven to be emberd's: it has the mark of a folder of this home whose supervisor
    is dead and whose start lock is held here, so that no new supervisor can start in it meanwhile.

    Args:
        home: The home whose folders are swept.
        timing: How long killed processes may take to end: a start that measured memory before
            that would count theirs as in use.
        locked: The folder whose start lock the caller already holds.
    """
    # All processes are read once, however many folders there are, and again only for a folder that
    # had some then. What a supervisor has started since has an orphan reaper of its own.
    marked = functools.cache(lambda: {folder for _, folder, _ in processes.marks()})
    for folder in home.all_server_folders():
        lock_folder = home.start_lock_folder(folder)
        is_locked = lock_folder == locked
        try:
            paths.make_private(lock_folder)
            with nullcontext() if is_locked else locks.start_lock(lock_folder, timeout_s=0):
                if not locks.is_alive(folder):
                    may_run = folder == locked or str(folder) in marked()
                    cleanup.clean_up(folder, timing, may_run=may_run)
        except (LockTimeoutError, StateFolderError):
            # Another process is starting a server there, and sweeps it; or the folder is not ours.
            if is_locked:
                raise


def _await_takeover(folder: Path, start_id: str, timing: Timing) -> None:
    deadline = time.monotonic() + timing.takeover_s
    while time.monotonic() < deadline:
        own = state.read_record(folder)
        if own is None or own.start_id != start_id or own.supervisor is not None:
            return
        if not locks.is_alive(folder):
            return  # the supervisor has already ended; callers that wait for it see that too
        time.sleep(_TAKEOVER_POLL_S)

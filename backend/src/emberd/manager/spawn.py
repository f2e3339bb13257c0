"""Spawns a supervisor as a process that outlives its caller, which holds the start lock."""

from __future__ import annotations

import functools
import math
import os
import posix
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from emberd.engines.base import phase_of
from emberd.errors import LockTimeoutError, StartError, StateFolderError
from emberd.manager import cleanup, history, idle, locks, paths, state
from emberd.manager.paths import Home
from emberd.manager.state import Record, State, Timing
from emberd.settings import ServerSpec, StartOptions
from emberd.system import atomic_file, log_rules, os_errors, ownership, process_env, processes
from emberd.system.log_rules import READ_LOG, Diagnosis

SUPERVISOR_MODULE: Final = "emberd.verified_manager"
GATEWAY_MODULE: Final = "emberd.gateway"
"""The module that the supervisor of the gateway runs."""

_TAKEOVER_POLL_S: Final = 0.01
_STANDARD_STREAMS: Final = 3
_OPEN_DESCRIPTORS: Final = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
_UNRESETTABLE: Final = (signal.SIGKILL, signal.SIGSTOP)
_FROM_OUTSIDE: Final = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_EMBERD: Final = str(Path(__file__).parents[2])  # the folder that makes emberd importable


def start_supervisor(
    folder: Path,
    spec: ServerSpec,
    engine: str,
    timing: Timing,
    *,
    idle_timeout_s: float,
    options: StartOptions,
    repeated: str | None = None,
    lost: str | None = None,
) -> str:
    """Start a supervisor in ``folder`` and return the start_id of this start.

    The caller holds the start lock until this returns; by then the supervisor has published its
    first record, or has ended. If it failed, the record says why, for all who wait for this start.

    Args:
        folder: The server's state folder.
        spec: What was requested.
        engine: Name of the engine.
        timing: The periods of the supervisor.
        idle_timeout_s: See ``ServerManager.ensure``.
        options: How to start the server.
        repeated: The start_id of a killed start that this one repeats.
        lost: The start_id of the server that the caller lost during its job.

    Raises:
        StartError: Another supervisor runs in that folder.
    """

    def make(start_id: str, log: Path) -> Record:
        idle.reset(folder, idle_timeout_s)
        before = state.read_last_record(folder)
        # Counted before the attempt: a supervisor that is killed writes nothing any more. Those
        # that are long past do not count; the one that a caller saw killed may have taken minutes.
        attempts = 1
        if before is not None and before.was_killed:
            age_s = time.monotonic() - before.since_s
            if before.start_id == repeated or age_s <= before.timing.cool_down_s:
                attempts += before.attempts
        return Record(
            state=State.STARTING,
            start_id=start_id,
            spec=spec,
            timing=timing,
            since_s=time.monotonic(),
            attempts=attempts,
            engine=engine,
            log_path=str(log),
            options=options,
            progress=state.PLANNING,
        )

    return start(folder, timing, make, facts={"repeats": repeated, "lost": lost})


def start(
    folder: Path,
    timing: Timing,
    make: Callable[[str, Path], Record],
    module: str | None = None,
    facts: Mapping[str, object] = MappingProxyType({}),
) -> str:
    """Start a supervisor in ``folder``; see ``start_supervisor``.

    Args:
        folder: The state folder.
        timing: The periods of the supervisor.
        make: Makes the first record, from the start_id and the path of the log.
        module: The module that the supervisor runs; None for that of a server.
        facts: What the history says of the start besides its record.

    Raises:
        StartError: Another supervisor runs in that folder.
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
        first = make(start_id, log)
        state.write_record(folder, first)
        more = {"attempts": first.attempts, **facts, **history.by_this_process()}
        history.note(folder, history.START, first, **more)
        failure = run_supervisor(
            folder, start_id, descriptor, log, timing.takeover_s, module=module
        )
    finally:
        # The supervisor has the same open file; from here on it is the only holder.
        locks.release(descriptor)
    if not _await_takeover(folder, start_id, timing):
        failure = failure or _diagnose(log)
    if failure is not None:
        with locks.liveness_lock(folder) as is_free:
            if is_free:
                failed = replace(first, state=State.FAILED, failure=failure)
                state.write_record(folder, replace(failed, since_s=time.monotonic()))
                phase, why = phase_of(first.progress), failure.cause
                history.note(folder, history.START_FAILED, first, phase=phase, cause=why)
    return start_id


def run_supervisor(
    folder: Path,
    start_id: str,
    alive_fd: int,
    log: Path,
    timeout_s: float,
    *,
    module: str | None = None,
) -> Diagnosis | None:
    """Run the supervisor of ``folder`` and hand the liveness lock over to it.

    The supervisor forks once more, so this returns as soon as its first process has ended, and
    init becomes the parent: no zombie is left to the caller.

    Args:
        folder: The server's state folder.
        start_id: The id of this start.
        alive_fd: Descriptor that holds the liveness lock; it is inherited and never unlocked.
        log: The server's log, which also gets the supervisor's output.
        timeout_s: How long the first process may take.
        module: See ``start``.

    Returns:
        Why it failed; None if it did not, or was killed.
    """
    if not (python := process_env.interpreter()):
        return Diagnosis(
            f"This Python is embedded in another program (sys.executable={sys.executable!r}), and "
            f"{sys.prefix} has no interpreter that could run a supervisor",
            "Run `emberd up` in a terminal first, or pass base_url=.",
        )
    # Not one of the standard streams, even if the caller has closed those.
    inherited = _STANDARD_STREAMS + (alive_fd == _STANDARD_STREAMS)
    command = [
        python,
        "-P",
        "-m",
        module or SUPERVISOR_MODULE,
        str(folder),
        start_id,
        str(inherited),
    ]
    # If another server started the caller, it has that server's mark; a supervisor must have none.
    environment = {k: v for k, v in process_env.for_server().items() if k != processes.MARK}
    environment["PYTHONPATH"] = os.pathsep.join(import_path())
    try:
        # Neither subprocess nor os: gevent and eventlet replace these. Their child would run the
        # at-fork handlers, which close the liveness lock, and their calls fail in some threads.
        pid = posix.posix_spawn(
            os.path.abspath(python),
            command,
            environment,
            file_actions=[
                (posix.POSIX_SPAWN_DUP2, alive_fd, inherited),
                # The caller's streams are not inherited: `eval "$(emberd env)"` waits for every
                # process that holds its pipe.
                (posix.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (posix.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_APPEND, 0),
                (posix.POSIX_SPAWN_DUP2, 1, 2),
                *(
                    (posix.POSIX_SPAWN_CLOSE, other)
                    for other in _inheritable()
                    if other != inherited
                ),
            ],
            setsid=True,
            # Signals that the caller blocks or ignores are inherited; a supervisor must get them.
            setsigmask=(),
            setsigdef=signal.valid_signals().difference(_UNRESETTABLE),
        )
    except OSError as error:
        return Diagnosis(
            f"The supervisor could not be run: {error}",
            os_errors.advice(error) or f"Check {python} and `ulimit -a`.",
        )
    try:
        code = _exit_code(pid, timeout_s)
    except BaseException:
        _exit_code(pid, timeout_s)  # a signal handler raised: the start continues, without a zombie
        raise
    return None if code is None or -code in (0, *_FROM_OUTSIDE) else _diagnose(log, code)


def _exit_code(pid: int, timeout_s: float) -> int | None:
    """Return the exit code of a child once it has ended; None if it is unknown.

    Polled, because waiting would block every greenlet of gevent or eventlet. A process that does
    not end in time is killed.
    """
    deadline = time.monotonic() + timeout_s
    try:
        while (ended := posix.waitpid(pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(_TAKEOVER_POLL_S)
        return os.waitstatus_to_exitcode(ended[1])
    except ChildProcessError:
        return None  # SIGCHLD is ignored, or another part of the program reaps all children


def _diagnose(log: Path, code: int | None = None) -> Diagnosis | None:
    """Return why a supervisor ended before its first record; None if it was killed.

    Args:
        log: Its log, which has no output of a server yet.
        code: Its exit code; None if it is unknown.
    """
    text = (paths.read_file(log, truncate=True) or b"").decode("utf-8", "replace")
    if code is None and "Traceback (most recent call last)" not in text:
        return None
    how = "ended" if code is None else f"ended with code {code}"
    if code is not None and code < 0:
        how = f"was ended by {log_rules.signal_name(code)}"
    return Diagnosis(f"The supervisor {how}; its last line: {log_rules.last_line(text)}", READ_LOG)


def import_path() -> list[str]:
    """Return the caller's ``sys.path`` for a supervisor, which must find emberd as the caller does.

    It must also find an engine that is named by its module, in a folder that only the caller knows.
    The order differs: no file of the application hides a module of the standard library, and none
    beside its script or in its working folder hides a package.
    """
    standard = os.path.dirname(os.__file__)
    try:
        working = os.getcwd()
    except OSError:  # it was deleted, or may not be read any more
        working = ""
    given = [os.path.join(working, entry) for entry in sys.path if isinstance(entry, str)]
    entries = [os.path.normpath(entry) for entry in given if os.path.isabs(entry)]
    script = os.path.dirname(getattr(sys.modules.get("__main__"), "__file__", None) or "")
    # The interpreter, or a program that runs others, puts the folder of the script first.
    own = {os.path.realpath(each) for each in (working, script, *entries[:1]) if each}

    def rank(entry: str) -> int:
        if entry in (standard, os.path.join(standard, "lib-dynload")):
            return 0
        if entry == _EMBERD:
            return 1
        return 3 if os.path.realpath(entry) in own else 2

    return sorted([*entries, _EMBERD], key=rank)


def _inheritable() -> list[int]:
    """Return the descriptors besides the standard streams that a new program would inherit."""
    found = []
    # posix_spawn fails for numbers above the limit, which may have been lowered.
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = math.inf if soft == resource.RLIM_INFINITY else soft
    for name in os.listdir(_OPEN_DESCRIPTORS):
        with suppress(OSError):  # of the listing itself, or closed since
            if _STANDARD_STREAMS <= int(name) < most and os.get_inheritable(int(name)):
                found.append(int(name))
    return found


def sweep(home: Home, timing: Timing, *, locked: Path | None = None) -> None:
    """End processes of servers whose supervisors are dead, and remove their files.

    Only what is proven to be emberd's: it has the mark of a folder of this home whose supervisor
    is dead and whose start lock is held here, so that no new supervisor can start in it.

    Args:
        home: The home whose folders are swept.
        timing: How long killed processes may take to end: a start that measured memory before
            that would count theirs as in use.
        locked: The folder whose start lock the caller already holds.
    """
    # All processes are read once, however many folders there are, and again only for a folder that
    # had some then. What a supervisor has started since has another orphan reaper.
    marked = functools.cache(lambda: {folder for _, folder, _ in processes.marks()})
    for folder in home.all_server_folders():
        lock_folder = home.start_lock_folder(folder)
        is_locked = lock_folder == locked
        try:
            ownership.make_private(lock_folder)
            with nullcontext() if is_locked else locks.start_lock(lock_folder, timeout_s=0):
                if not locks.is_alive(folder):
                    may_run = folder == locked or str(folder) in marked()
                    cleanup.clean_up(folder, timing, may_run=may_run)
        except (LockTimeoutError, StateFolderError):
            # Another process is starting a server there, and sweeps it; or the folder is not ours.
            if is_locked:
                raise


def _await_takeover(folder: Path, start_id: str, timing: Timing) -> bool:
    """Return whether the supervisor has taken over, once it has done so or has ended."""
    deadline = time.monotonic() + timing.takeover_s
    while time.monotonic() < deadline:
        is_alive = locks.is_alive(folder)  # first: it may take over and end in between
        own = state.read_record(folder)
        if own is None or own.start_id != start_id or own.supervisor is not None:
            return True
        if not is_alive:
            return False
        time.sleep(_TAKEOVER_POLL_S)
    return True

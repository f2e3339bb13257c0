"""The manager: finds the requested server, or starts exactly one.

This module contains no mechanism; it decides the order of the steps:

1. A base URL was given: verify it and use it; no server is started.
2. A record shows a running server that fits: use it, or join its start. No lock is taken.
3. Take the start lock, read the records again, then search for external servers.
4. Start a supervisor, hand the liveness lock over to it, and release the start lock.
5. Wait for ``ready`` outside the lock, so that the wait can end without ending the start.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from emberd import durations, engines, env
from emberd.env import Places
from emberd.errors import (
    EmberdError,
    NoEngineError,
    ServerMismatchError,
    ServerStoppedError,
    StartTimeoutError,
    StateFolderError,
)
from emberd.manager import (
    discovery,
    history,
    idle,
    locks,
    lost_records,
    paths,
    spawn,
    state,
    stopping,
)
from emberd.manager.history import Event
from emberd.manager.state import (
    OnProgress,
    Progress,
    Server,
    ServerSnapshot,
    ServerStatus,
    State,
    Timing,
    Verify,
)
from emberd.settings import IDLE_TIMEOUT_S, START_TIMEOUT_S, ServerSpec, StartOptions
from emberd.system import os_errors, ownership
from emberd.system.bounded_http import bounded
from emberd.system.gateway_start import await_gateway

_LOG: Final = logging.getLogger("emberd")
_typed: Final = os_errors.raised_as(
    StateFolderError, "EMBERD_HOME sets the folder of emberd's files."
)
_PROGRESS_EVERY_S: Final = 1.0
_DYING_S: Final = 0.5  # a killed process may break a connection before its port is closed


Obtain = Callable[[Callable[[str], None]], None]
"""Obtains what a start lacks, and calls its argument with a line for display."""

FindMissing = Callable[[ServerSpec], Obtain | None]
"""Returns what obtains that which a start of a server lacks; None if it lacks nothing. It is called
under the start lock, so it must be quick."""


@dataclass(frozen=True, slots=True)
class _Lacking:
    """What has to be obtained before a server can be started."""

    obtain: Obtain


@dataclass(frozen=True, slots=True)
class _Request:
    """What one call of ``ensure`` or ``find`` requests; see the arguments of ``ensure``.

    Attributes:
        missing: See ``ensure``; None if what was missing has been obtained.
        awaited: The start_id of the last start that this call waited for.
        deadline: When ``start_timeout`` expires, on the monotonic clock.
    """

    spec: ServerSpec
    verify: Verify
    options: StartOptions
    api_key: str | None = None
    idle_timeout_s: float = math.inf
    lost: Server | None = None
    retry_failed: bool = False
    deadline: float = math.inf
    missing: FindMissing | None = None
    awaited: str | None = None


@dataclass(frozen=True, slots=True)
class PendingStart:
    """A start in progress that a caller waits for.

    Attributes:
        folder: The server's state folder.
        start_id: The id of the start.
        started: Whether this call began it.
        options: How the server is started.
    """

    folder: Path
    start_id: str
    started: bool
    options: StartOptions = field(default_factory=StartOptions)

    def unmet(self, asked: Mapping[str, Any]) -> list[str]:
        """Return the names of the start options in ``asked`` that the server will not have.

        Args:
            asked: Values by field name of ``StartOptions``.
        """
        # A port that emberd chooses is known once the server is ready.
        known = [name for name in asked if name != "port" or self.options.port is not None]
        return [name for name in known if asked[name] != getattr(self.options, name)]


Check = Callable[[Server | PendingStart], None]
"""Called with the server or the start that a call would use, before anything is changed for it;
raises to refuse it."""


class ServerManager:
    """Finds, starts, watches and stops servers of this user on this machine."""

    def __init__(
        self,
        home: str | Path | None = None,
        *,
        verify: Verify,
        timing: Timing | None = None,
        share_gpu: Collection[str] | None = None,
    ) -> None:
        """Create a manager; no file is read or written yet.

        Args:
            home: Folder of all state; None for ``EMBERD_HOME`` or the platform's default.
            verify: Requests a real embedding from a server and returns its endpoint, or raises.
            timing: Periods and deadlines, also of the supervisors that it starts.
            share_gpu: Models whose servers are to fit on one GPU, where no options of a start are
                given; None for the environment's value.
        """
        self._places = Places.resolve(home)
        # The real path: marks and records of one home must not differ because of a symbolic link.
        self._home = paths.Home(Path(os.path.realpath(self._places.home)))
        self._verify = verify
        self._timing = timing or Timing()
        self._share_gpu = None if share_gpu is None else tuple(share_gpu)

    # -- finding and starting -----------------------------------------------------------

    @_typed
    def ensure(
        self,
        spec: ServerSpec,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        batch_size: int | None = None,
        start_timeout: float | str = START_TIMEOUT_S,
        idle_timeout: float | str | None = IDLE_TIMEOUT_S,
        lost: Server | None = None,
        retry_failed: bool = False,
        options: StartOptions | None = None,
        check: Check | None = None,
        missing: FindMissing | None = None,
        on_progress: OnProgress | None = None,
    ) -> Server:
        """Return a verified server for ``spec``: the given one, a running one, or a new one.

        Args:
            spec: Which model, and the constraints that the server must meet.
            base_url: A server to use as it is; then none is searched for or started.
            api_key: The user's key, for ``base_url`` and for servers that ``EMBERD_DISCOVER``
                lists.
            batch_size: Most texts in a request of the verification of a server that is not
                emberd's own; None for the environment's value, if there is one.
            start_timeout: Seconds, or "15m", to wait for a start, which continues afterwards. Also
                for one by a gateway at ``base_url``, which is verified in that time.
            idle_timeout: Idle seconds, or "5m", after which the server may stop; None for never.
            lost: The server that ended during the caller's job.
            retry_failed: Start again although the last start has just failed.
            options: How to start a server if there is none; None for the environment's values.
            check: Called with the server or the start that would be used; raises to refuse it.
            missing: Finds what a start lacks, if a server has to be started. None for an engine
                that can be installed, if ``EMBERD_AUTO_INSTALL`` is set.
            on_progress: Called about once a second while a server starts.

        Raises:
            ServerMismatchError: ``base_url`` serves something else, does not meet
                ``deterministic``, or belongs to another user than the server that was ``lost``
                there.
            NoEngineError: No engine can serve the model on this machine.
            StartError: The server was started and failed; all callers that wait for it get this.
            StartTimeoutError: ``start_timeout`` expired.
            LockTimeoutError: Another process holds the start lock for too long.
            ServerStoppedError: ``lost`` was stopped on request.
            StateFolderError: The home cannot be used.
        """
        verify = self._verification(spec, batch_size)
        if base_url is not None:
            listener = None if lost is None else discovery.restarted_listener(lost.endpoint)
            endpoint = await_gateway(
                partial(verify, base_url, api_key, spec, listener),
                durations.validate("start_timeout", start_timeout),
            )
            if problem := discovery.determinism_mismatch(endpoint, spec):
                raise ServerMismatchError(problem)
            reason = f"{endpoint.url} was given"
            given = Server(endpoint, "given", reason, notes=endpoint.notes)
            return given if options else given.noting_unmet()
        deadline = time.monotonic() + durations.validate("start_timeout", start_timeout)
        idle_timeout_s = durations.validate_or_never("idle_timeout", idle_timeout)
        request = _Request(
            spec,
            verify,
            options or StartOptions.resolve(task=spec.task, share_gpu=self._share_gpu),
            api_key,
            math.inf if idle_timeout_s is None else idle_timeout_s,
            lost,
            retry_failed,
            deadline,
            missing or (_missing_engine if self._places.auto_install else None),
        )
        if lost is not None and lost.origin == "own":
            self._await_death_notice(lost, deadline)
        while True:
            with bounded(max(0.0, deadline - time.monotonic())):
                running = self._running(request)
            found = running or self._begin(request)
            if isinstance(found, _Lacking):
                # Once: an engine that is still missing then is an error. The time that this takes
                # does not count as start time.
                deadline += _obtain(found, on_progress)
                request = replace(request, deadline=deadline, missing=None)
                continue
            if isinstance(found, PendingStart):
                if check:
                    check(found)
                # One start of this call's own overrides a failure; a second would be a loop.
                retry = request.retry_failed and not found.started
                request = replace(request, retry_failed=retry, awaited=found.start_id)
                found = self._await(found, spec, deadline, on_progress)
            if found is not None:
                if check:
                    check(found)
                if found.origin == "own" and found.folder is not None:
                    idle.request(Path(found.folder), request.idle_timeout_s)
                return found if options else found.noting_unmet()

    @_typed
    def find(self, spec: ServerSpec, *, api_key: str | None = None) -> Server | None:
        """Return a running server for ``spec``, emberd's own or an external one; start none."""
        request = _Request(spec, self._verification(spec), StartOptions(), api_key)
        for folder in self._home.server_folders(spec.key):
            seen = lost_records.await_record(folder, self._timing)
            found = self._use_or_join(seen, request) if seen.serves(spec) else None
            if isinstance(found, Server):
                return found
        return discovery.search(spec, self._places.discover, api_key, request.verify)[0]

    # -- status and stop ----------------------------------------------------------------

    @_typed
    def status(self) -> list[ServerStatus]:
        """Return what is known about every server since the machine booted."""
        known = []
        # Lost records are awaited for all folders together, and processes read at most once.
        deadline_s = time.monotonic() + self._timing.record_s
        marks = lost_records.marks_read_once()
        for folder in self._home.all_server_folders():
            try:
                seen = state.settled_snapshot(folder, deadline_s, self._timing.poll_s)
                known.append(lost_records.server_status(seen, marks))
            except StateFolderError as error:
                _LOG.warning("%s", error)  # one unusable folder does not hide the others
        return [each for each in known if each is not None]

    @_typed
    def history(self) -> list[Event]:
        """Return what happened to servers, of this and earlier boots, the newest last.

        Raises:
            StateFolderError: The history cannot be read.
        """
        return history.read(self._home)

    @_typed
    def stop(
        self, spec: ServerSpec | None = None, *, deadline_s: float = math.inf
    ) -> list[ServerStatus]:
        """Stop the servers of ``spec``, or all that emberd started; return their last statuses.

        The record of an external server is deleted; the server itself is never stopped.

        Args:
            spec: Which servers; None for all.
            deadline_s: How long to wait for lost records, on the monotonic clock; never longer
                than a supervisor takes to rewrite one.

        Raises:
            StartError: Some processes cannot be ended.
            StateFolderError: A folder cannot be read; the other servers are stopped by then.
        """
        home = self._home
        chosen = home.all_server_folders() if spec is None else home.server_folders(spec.key)
        stopped, errors = [], []
        deadline_s = min(deadline_s, time.monotonic() + self._timing.record_s)
        marks = lost_records.marks_read_once()
        for folder in chosen:
            try:
                was = stopping.stop(folder, self._timing, deadline_s, marks)
            except EmberdError as error:
                errors.append(error)  # the other servers are stopped anyway
            else:
                stopped += [was] if was else []
        spawn.sweep(home, self._timing)
        if errors:
            raise errors[0]
        return stopped

    @_typed
    def is_current(self, server: Server) -> bool:
        """Return whether a server that was returned earlier still runs; takes less than 1 ms.

        Call it before a new job: a server that has stopped since, because it was idle or on
        request, is then started again. External servers are not asked: each new connection to them
        is checked instead, see ``emberd.system.listeners``.
        """
        if server.origin != "own" or server.folder is None:
            return True
        seen = state.snapshot(Path(server.folder))
        if seen.state is State.UNKNOWN:  # its supervisor runs, and rewrites the lost record
            return True
        is_same = seen.record is not None and seen.record.start_id == server.start_id
        return is_same and seen.state is State.READY

    @_typed
    def used(self, server: Server) -> None:
        """Tell the supervisor that the server is in use; acts at most once a second.

        Raises:
            ServerStoppedError: It was stopped on request. SGLang accepts requests as long as they
                come, so a job that went on sending them would prevent its orderly end.
        """
        if server.folder is not None and idle.touch(server.folder):
            own = state.snapshot(Path(server.folder)).record
            if own is not None and own.start_id == server.start_id and own.stopped_by_user:
                raise _stopped(own.spec)

    @_typed
    def report_unresponsive(self, server: Server) -> None:
        """Have the supervisor probe the server, which did not answer in time."""
        if server.origin == "own" and server.folder is not None:
            # Imported here: only a supervisor watches a server.
            from emberd.manager import health

            health.report_unresponsive(server.folder)

    # -- the steps of ensure ------------------------------------------------------------

    def _verification(self, spec: ServerSpec, batch_size: int | None = None) -> Verify:
        limit = batch_size or env.value(env.setting_variable("batch_size", spec.task))
        return partial(self._verify, batch_size=limit)

    def _snapshots(self, spec: ServerSpec) -> list[ServerSnapshot]:
        first = state.snapshot(self._home.server_folder(spec.key))
        if first.origin == "own" and first.serves(spec):  # the usual case: one file, one probe
            return [first]
        return [state.snapshot(folder) for folder in self._home.server_folders(spec.key)]

    def _running(self, request: _Request) -> Server | PendingStart | None:
        seen = self._snapshots(request.spec)
        for each in seen:
            if each.serves(request.spec) and (found := self._use_or_join(each, request)):
                return found
        if request.lost is not None:
            for each in seen:
                own = each.record
                if own and own.stopped_by_user and str(each.folder) == request.lost.folder:
                    raise _stopped(own.spec)
        if not request.retry_failed:
            for each in seen:
                if error := each.recent_failure(
                    request.spec, request.options, self._timing.cool_down_s
                ):
                    raise error
        return None

    def _use_or_join(self, seen: ServerSnapshot, request: _Request) -> Server | PendingStart | None:
        if seen.record is not None and seen.state is State.STARTING:
            return PendingStart(
                seen.folder, seen.record.start_id, started=False, options=seen.record.options
            )
        if seen.origin == "found":
            return discovery.reverify(
                seen, request.spec, self._places.discover, request.api_key, request.verify
            )
        server = seen.server()
        if server is None or state.is_listening(server.endpoint):
            return server
        # It has died and its supervisor is about to record that; then there is no server here.
        self._await_death_notice(server, request.deadline)
        if state.is_listening(server.endpoint):
            return server
        now = state.snapshot(seen.folder)
        is_same = now.record is not None and now.record.start_id == server.start_id
        if is_same and now.serves(request.spec):
            stopping.end_supervisor(now)
        return None

    def _begin(self, request: _Request) -> Server | PendingStart | _Lacking | None:
        """Return a server, a start to wait for, or what is missing; None to look again."""
        spec = request.spec
        self._await_ending(spec, request.deadline)
        ownership.make_private(self._home.machine)
        ownership.make_private(self._home.servers)
        first = ownership.make_private(self._home.server_folder(spec.key))
        patience_s = max(0.0, min(self._timing.lock_s, request.deadline - time.monotonic()))
        # Another process waits for the lock; a server that answers slowly must not delay it so long
        # that it gives up.
        with locks.start_lock(first, patience_s), bounded(min(patience_s, self._timing.lock_s / 4)):
            if again := self._running(request):
                return again
            seen = [state.snapshot(folder) for folder in self._home.server_folders(spec.key)]
            if any(each.is_ending for each in seen):
                return None
            taken = [each.folder for each in seen if each.alive]
            folder = ownership.make_private(self._home.free_server_folder(spec.key, taken))
            found, refusals = discovery.search(
                spec, self._places.discover, request.api_key, request.verify
            )
            if found is not None:
                return discovery.adopt(folder, spec, found, self._timing)
            # Obtained outside the lock: no process may wait for it during a large download.
            if request.missing and (obtain := request.missing(spec)):
                return _Lacking(obtain)
            engine = _choose_engine(spec, refusals)
            spawn.sweep(self._home, self._timing, locked=first)
            start_id = spawn.start_supervisor(
                folder,
                spec,
                engine.name,
                self._timing,
                idle_timeout_s=request.idle_timeout_s,
                options=request.options,
                repeated=request.awaited,
                lost=request.lost.start_id if request.lost is not None else None,
            )
            return PendingStart(folder, start_id, started=True, options=request.options)

    def _await(
        self,
        pending: PendingStart,
        spec: ServerSpec,
        deadline: float,
        on_progress: OnProgress | None,
    ) -> Server | None:
        """Return the server once it is ready; None if there is none, or one that does not fit."""
        last_reported = 0.0
        while True:
            seen = lost_records.await_record(pending.folder, self._timing, deadline)
            if seen.record is None or seen.record.start_id != pending.start_id:
                return None
            if seen.state is not State.STARTING:
                return _outcome(seen, pending, spec)
            now = time.monotonic()
            own = seen.record
            progress = Progress(
                own.progress, now - own.since_s, own.log_path, own.phase_seconds(now)
            )
            if now > deadline:
                raise progress.timed_out()
            if on_progress and now - last_reported >= _PROGRESS_EVERY_S:
                last_reported = now
                on_progress(progress)
            time.sleep(self._timing.poll_s)

    def _await_ending(self, spec: ServerSpec, deadline: float) -> None:
        """Wait for servers of ``spec`` that are ending, so that two never overlap."""
        while any(
            lost_records.await_record(folder, self._timing, deadline).is_ending
            for folder in self._home.server_folders(spec.key)
        ):
            if time.monotonic() > deadline:
                raise StartTimeoutError(
                    f"start_timeout expired while the last server of {spec.model} finishes its "
                    f"requests. Try again later; `emberd status` shows its state."
                )
            time.sleep(self._timing.poll_s)

    def _await_death_notice(self, lost: Server, deadline: float) -> None:
        """Wait briefly until the supervisor of a lost server has noticed its death too."""
        began = time.monotonic()
        while self.is_current(lost) and (waited := time.monotonic() - began) < self._timing.lost_s:
            # A broken connection does not mean that the server ended: it may still listen.
            if waited > _DYING_S and state.is_listening(lost.endpoint):
                return
            if began + waited > deadline:
                raise StartTimeoutError(
                    f"start_timeout expired while the supervisor of {lost.endpoint.url} records "
                    f"that this server has ended. Try again later; `emberd status` shows its state."
                )
            time.sleep(self._timing.poll_s)


def _choose_engine(spec: ServerSpec, refusals: Sequence[str]) -> engines.Engine:
    """Return ``engines.choose``; its error also says why running servers do not fit."""
    try:
        return engines.choose(spec)
    except NoEngineError as error:
        if not refusals:
            raise
        seen = "\n".join(f"  {refusal}" for refusal in refusals)
        raise NoEngineError(f"{error}\nRunning servers that do not fit:\n{seen}") from None


def _missing_engine(spec: ServerSpec) -> Obtain | None:
    name = engines.explain(spec).installable
    if name is None:
        return None

    def install(report: Callable[[str], None]) -> None:
        # Imported late: most processes never install an engine. Processes that do this at the same
        # time wait for one installation.
        from emberd import installs

        installs.install(name, Places.resolve(), report)

    return install


def _obtain(missing: _Lacking, on_progress: OnProgress | None) -> float:
    """Obtain what is missing; return how long it took, in seconds."""
    began_s = time.monotonic()

    def report(text: str) -> None:
        if on_progress is not None:
            on_progress(Progress(text, time.monotonic() - began_s, log_path=""))

    missing.obtain(report)
    return time.monotonic() - began_s


def _outcome(seen: ServerSnapshot, pending: PendingStart, spec: ServerSpec) -> Server | None:
    own = seen.record
    if seen.state is State.READY:
        # If another process began the start, device and context are known only now.
        return seen.server(started=pending.started) if seen.serves(spec) else None
    if own is not None and own.stopped_by_user:
        raise _stopped(spec)
    # If it was killed, or failed after it had been ready, another start is worth trying.
    if error := seen.start_failure():
        raise error
    return None


def _stopped(spec: ServerSpec) -> ServerStoppedError:
    return ServerStoppedError(
        f"The server of {spec.model} was stopped on request during this job. Run the job again to "
        f"start a new server."
    )

"""The manager: finds the server that was asked for, or starts exactly one.

Nothing here does a mechanism's work; it decides in which order the mechanisms are asked:

1. a base URL was given: it is verified and used, and nothing is ever started;
2. a record shows a server that fits and lives: it is used, or its start is joined. No lock;
3. the start lock; the records once more; then the servers of others;
4. a supervisor is started and handed the proof of life, and the lock let go;
5. the wait for ``ready`` goes on outside the lock, so that it can end without ending the start.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from emberd import durations
from emberd.engines import to_install
from emberd.env import Places
from emberd.errors import EmberdError, ServerStoppedError, StartTimeoutError
from emberd.manager import (
    adoption,
    folders,
    idle,
    locks,
    lost_records,
    provision,
    slot,
    starter,
    stopping,
    suspicion,
)
from emberd.manager.record import Record, State
from emberd.manager.server import OnProgress, Progress, Server, ServerStatus, Verify
from emberd.manager.slot import View
from emberd.manager.timing import Timing
from emberd.manager.wish import Check, Joined, Wish
from emberd.settings import IDLE_TIMEOUT_S, START_TIMEOUT_S, ServerSpec, StartOptions

_PROGRESS_EVERY_S: Final = 1.0
_DYING_S: Final = 0.5  # a killed process may break a connection before its port is closed


class ServerManager:
    """Finds, starts, watches and stops servers of this user on this machine."""

    def __init__(
        self, home: str | Path | None = None, *, verify: Verify, timing: Timing | None = None
    ) -> None:
        """Make a manager; nothing is read or written yet.

        Args:
            home: Folder of all state; None for ``EMBERD_HOME`` or the platform's own.
            verify: Asks a server for a real embedding and returns what it is, or raises.
            timing: Periods and deadlines; supervisors started from here live by them too.
        """
        self._places = Places.resolve(home)
        # By its real path: marks and records of one home must not differ by a link on the way.
        self._home = folders.Home(Path(os.path.realpath(self._places.home)))
        self._verify = verify
        self._timing = timing or Timing()

    # -- finding and starting -----------------------------------------------------------

    def ensure(
        self,
        spec: ServerSpec,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        start_timeout: float | str = START_TIMEOUT_S,
        idle_timeout: float | str | None = IDLE_TIMEOUT_S,
        lost: Server | None = None,
        retry_failed: bool = False,
        options: StartOptions | None = None,
        check: Check | None = None,
        on_progress: OnProgress | None = None,
    ) -> Server:
        """Return a verified server for ``spec``: the given one, a running one, or a new one.

        Args:
            spec: Which model, and what the server must meet.
            base_url: A server to use as it is; nothing is found or started then.
            api_key: The user's key, for ``base_url`` and for servers that ``EMBERD_DISCOVER``
                lists.
            start_timeout: Seconds, or "15m", to wait for a start, which goes on afterwards.
            idle_timeout: Idle seconds, or "5m", after which the server may stop; None for never.
            lost: The server that vanished in the middle of the caller's job.
            retry_failed: Start again although the last start has just failed.
            options: How to start a server if there is none; None for what the environment says.
            check: Called with the server or the start that would be used; raises to refuse it.
            on_progress: Called about once a second while a server starts.

        Raises:
            ServerMismatchError: ``base_url`` serves something else, or belongs to another user
                than the server that was ``lost`` there.
            NoEngineError: No engine can serve the model on this machine.
            StartError: The server was started and failed; also what waiters of it get.
            StartTimeoutError: ``start_timeout`` ended the wait.
            LockTimeoutError: Another process holds the start lock for too long.
            ServerStoppedError: ``lost`` was stopped by a person.
            StateFolderError: The home cannot be used.
        """
        if base_url is not None:
            listener = None if lost is None else adoption.successor(lost.endpoint)
            endpoint = self._verify(base_url, api_key, spec, listener)
            given = Server(endpoint, "given", f"{endpoint.url} was given")
            return given if options else given.noting_unmet()
        deadline = time.monotonic() + durations.validate("start_timeout", start_timeout)
        how = options or StartOptions.resolve()
        wish = Wish(spec, how, api_key, idle_timeout, lost, retry_failed)
        if lost is not None and lost.origin == "own":
            self._let_death_be_seen(lost)
        while True:
            found = self._running(wish) or self._begin(wish, deadline)
            if check and isinstance(found, Joined):
                check(found)
            if isinstance(found, str):
                # Once: an engine that is still missing then is an error. Its time is no start's.
                deadline += provision.install(found, on_progress)
                wish, server = replace(wish, may_install=False), None
            elif isinstance(found, Joined):
                # One start of this call's own overrides a failure; a second would be a loop.
                wish = replace(wish, retry_failed=wish.retry_failed and not found.started)
                server = self._await(found, spec, deadline, on_progress)
            else:
                server = found
            if server is not None:
                if check:
                    check(server)
                _ask_to_stay(server, wish.idle_s)
                return server if options else server.noting_unmet()

    async def aensure(self, spec: ServerSpec, **options: Any) -> Server:
        """Do what ``ensure`` does, in a thread: it is file and process work."""
        return await asyncio.to_thread(self.ensure, spec, **options)

    def find(self, spec: ServerSpec, *, api_key: str | None = None) -> Server | None:
        """Return a running server for ``spec``, emberd's own or an external one; start nothing."""
        wish = Wish(spec, StartOptions(), api_key)
        lost_records.await_records(self._home.slots(spec.key), self._timing)
        for view in self._views(spec):
            if view.serves(spec) and isinstance(found := self._use_or_join(view, wish), Server):
                return found
        sought = adoption.search(spec, self._places.discover, api_key, self._verify)
        return sought.found.server() if sought.found else None

    def warm_up(self, spec: ServerSpec, *, idle_timeout: float | None = IDLE_TIMEOUT_S) -> None:
        """See to it that a server for ``spec`` runs or starts; do not wait for it.

        Raises:
            NoEngineError: No engine can serve the model on this machine.
            StartError: It could not even be begun.
        """
        wish = Wish(spec, StartOptions.resolve(), None, idle_timeout)
        deadline = time.monotonic() + self._timing.lock_s
        while not isinstance(
            found := self._running(wish) or self._begin(wish, deadline), Server | Joined
        ):
            if isinstance(found, str):
                # Once, as ``ensure`` does: an engine that is still missing then is an error.
                deadline += provision.install(found, None)
                wish = replace(wish, may_install=False)

    # -- seeing and stopping ------------------------------------------------------------

    def status(self) -> list[ServerStatus]:
        """Return what is known of every server since the machine booted."""
        return lost_records.statuses(self._home.all(), self._timing)

    def stop(
        self, spec: ServerSpec | None = None, *, deadline_s: float = math.inf
    ) -> list[ServerStatus]:
        """Stop the servers of ``spec``, or all that emberd keeps; return what they were.

        A server that emberd did not start is forgotten, never stopped.

        Args:
            spec: Which servers; None for all.
            deadline_s: Until when, on the monotonic clock, lost records are waited for; never
                longer than a supervisor takes to rewrite one.

        Raises:
            StartError: Processes are left that cannot be ended.
            StateFolderError: A folder cannot be read; the other servers are stopped by then.
        """
        chosen = self._home.all() if spec is None else self._home.slots(spec.key)
        stopped, errors, marks = [], [], lost_records.Marks()
        deadline_s = min(deadline_s, time.monotonic() + self._timing.record_s)
        for folder in chosen:
            try:
                was = stopping.stop(folder, self._timing, marks, deadline_s)
            except EmberdError as error:
                errors.append(error)  # the others are stopped all the same
            else:
                stopped += [was] if was else []
        starter.sweep(self._home, self._timing)
        if errors:
            raise errors[0]
        return stopped

    def is_current(self, server: Server) -> bool:
        """Return whether a server that was got earlier still runs; costs a fraction of a ms.

        For a new job: what stopped meanwhile, for idleness or by a person, is then started
        again. Servers that others keep are not asked: each new
        connection to them is checked instead, see ``emberd.system.listeners``.
        """
        if server.origin != "own" or server.folder is None:
            return True
        view = slot.look(Path(server.folder))
        if view.state is State.UNKNOWN:  # its supervisor lives, and rewrites the lost record
            return True
        same = view.record is not None and view.record.start_id == server.start_id
        return same and view.state is State.READY

    def used(self, server: Server) -> None:
        """Tell the supervisor that the server is in use; cheap, at most once a second.

        Raises:
            ServerStoppedError: A person stopped it. SGLang takes requests for as long as they come,
                and a job that went on sending them would keep it from its orderly end.
        """
        if server.folder is not None and idle.touch(server.folder):
            own = slot.look(Path(server.folder)).record
            if own is not None and own.start_id == server.start_id and own.stopped_by_person:
                raise _stopped(own.spec)

    def suspect(self, server: Server) -> None:
        """Tell the supervisor that the server did not answer in time: it is to probe it."""
        if server.origin == "own" and server.folder is not None:
            suspicion.report(server.folder)

    # -- the steps of ensure ------------------------------------------------------------

    def _views(self, spec: ServerSpec) -> list[View]:
        first = slot.look(self._home.slot(spec.key))
        if first.origin == "own" and first.serves(spec):  # the usual case: one file, one probe
            return [first]
        return [slot.look(folder) for folder in self._home.slots(spec.key)]

    def _running(self, wish: Wish) -> Server | Joined | None:
        views = self._views(wish.spec)
        for view in views:
            if view.serves(wish.spec) and (found := self._use_or_join(view, wish)):
                return found
        if wish.lost is not None:
            _refuse_to_undo(views, wish.lost)
        cool_down_s = self._timing.cool_down_s
        held_back = (view.held_back(wish.spec, wish.options, cool_down_s) for view in views)
        if not wish.retry_failed and (error := next(filter(None, held_back), None)):
            raise error
        return None

    def _use_or_join(self, view: View, wish: Wish) -> Server | Joined | None:
        if view.record is not None and view.state is State.STARTING:
            return Joined(
                view.folder, view.record.start_id, started=False, options=view.record.options
            )
        if view.origin == "found":
            return adoption.recall(
                view, wish.spec, self._places.discover, wish.api_key, self._verify
            )
        server = view.server()
        if server is None or slot.listens(server.endpoint):
            return server
        # It has died and its supervisor is about to say so; then there is no server here.
        self._let_death_be_seen(server)
        if slot.listens(server.endpoint):
            return server
        now = slot.look(view.folder)
        if (
            now.record is not None
            and now.record.start_id == server.start_id
            and now.serves(wish.spec)
        ):
            stopping.end_supervisor(now)
        return None

    def _begin(self, wish: Wish, deadline: float) -> Server | Joined | str | None:
        """Return a server, a start to wait for, or what is to be installed; None to look again."""
        spec = wish.spec
        self._let_pass(spec, deadline)
        folders.make_private(self._home.machine)
        folders.make_private(self._home.servers)
        first = folders.make_private(self._home.slot(spec.key))
        patience_s = max(0.0, min(self._timing.lock_s, deadline - time.monotonic()))
        with locks.start_lock(first, patience_s):
            if again := self._running(wish):
                return again
            views = [slot.look(f) for f in self._home.slots(spec.key)]
            if any(view.is_leaving for view in views):
                return None
            taken = [view.folder for view in views if view.alive]
            folder = folders.make_private(self._home.free_slot(spec.key, taken))
            known = adoption.verified_before(views, wish.lost)
            sought = adoption.search(spec, self._places.discover, wish.api_key, self._verify, known)
            if sought.found is not None:
                return adoption.adopt(folder, spec, sought.found, self._timing)
            # Installed without the lock: nobody is to wait for it while gigabytes are fetched.
            if self._places.auto_install and wish.may_install and (name := to_install(spec)):
                return name
            return self._start(wish, folder, sought.refusals)

    def _start(self, wish: Wish, folder: Path, refusals: Sequence[str]) -> Joined:
        engine = provision.choose(wish.spec, refusals)
        starter.sweep(self._home, self._timing, locked=self._home.slot(wish.spec.key))
        start_id = starter.start(
            folder,
            wish.spec,
            engine.name,
            self._timing,
            idle_timeout_s=wish.idle_s,
            options=wish.options,
        )
        return Joined(folder, start_id, started=True, options=wish.options)

    def _await(
        self, joined: Joined, spec: ServerSpec, deadline: float, on_progress: OnProgress | None
    ) -> Server | None:
        """Return the server once it is ready; None when there is none, or one that does not fit."""
        last_told = 0.0
        while True:
            view = lost_records.await_record(joined.folder, self._timing, deadline)
            if view.record is None or view.record.start_id != joined.start_id:
                return None
            if view.state is not State.STARTING:
                return _outcome(view, joined, spec)
            now = time.monotonic()
            progress = Progress(
                view.record.progress, now - view.record.since_s, view.record.log_path
            )
            if now > deadline:
                raise progress.timed_out()
            if on_progress and now - last_told >= _PROGRESS_EVERY_S:
                last_told = now
                on_progress(progress)
            time.sleep(self._timing.poll_s)

    def _let_pass(self, spec: ServerSpec, deadline: float) -> None:
        """Wait for servers of ``spec`` that are on their way out, so that two never overlap."""
        while any(view.is_leaving for view in self._views(spec)):
            lost_records.await_records(self._home.slots(spec.key), self._timing, deadline)
            if time.monotonic() > deadline:
                raise StartTimeoutError(
                    f"The last server of {spec.model} is still finishing its requests. "
                    f"Wait, or look at it with `emberd status`."
                )
            time.sleep(self._timing.poll_s)

    def _let_death_be_seen(self, lost: Server) -> None:
        """Wait briefly until the supervisor of a lost server has noticed its death too."""
        began = time.monotonic()
        while self.is_current(lost) and (waited := time.monotonic() - began) < self._timing.lost_s:
            # A broken connection does not mean that the server ended: it may still listen.
            if waited > _DYING_S and slot.listens(lost.endpoint):
                return
            time.sleep(self._timing.poll_s)


def _ask_to_stay(server: Server, idle_timeout: float | None) -> None:
    if server.origin == "own" and server.folder is not None:
        idle.ask(Path(server.folder), idle_timeout)


def _outcome(view: View, joined: Joined, spec: ServerSpec) -> Server | None:
    if view.state is State.READY:
        # Of a start that others began, device and context are known only now.
        return view.server(started=joined.started) if view.serves(spec) else None
    if view.record is not None and view.record.stopped_by_person:
        raise _stopped(spec)
    if view.record is not None and view.state is State.FAILED and not _was_ready(view.record):
        raise view.record.start_error()
    return None


def _was_ready(record: Record) -> bool:
    """Return whether it failed later than at its start: then another start is worth a try."""
    return record.failure is not None and not record.failure.starting


def _refuse_to_undo(views: list[View], lost: Server) -> None:
    for view in views:
        own = view.record
        if own is not None and own.stopped_by_person and str(view.folder) == lost.folder:
            raise _stopped(own.spec)


def _stopped(spec: ServerSpec) -> ServerStoppedError:
    return ServerStoppedError(
        f"The server of {spec.model} was stopped by a person in the middle of this job. "
        f"Run the job again to start a new one."
    )

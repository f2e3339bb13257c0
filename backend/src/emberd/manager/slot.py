"""One server's folder as a reader sees it: its record, and whether its supervisor lives."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from emberd.endpoint import Endpoint
from emberd.errors import StartError, StateFolderError
from emberd.manager import alive, folders, idle, record
from emberd.manager.record import Record, State
from emberd.manager.server import Origin, Server, ServerStatus
from emberd.settings import ServerSpec, StartOptions
from emberd.system import listeners

ATTEMPTS: Final = 3
"""Starts in a row that may be killed from outside before they are held to be the cause."""

_LIVING: Final = (State.STARTING, State.READY, State.STOPPING)


@dataclass(frozen=True, slots=True)
class View:
    """A folder's record and whether its supervisor lived when it was read.

    Attributes:
        folder: The server's state folder.
        record: What it says; None when there is none.
        alive: Whether somebody holds the proof of life.
    """

    folder: Path
    record: Record | None
    alive: bool

    @property
    def state(self) -> State:
        """The state that counts: without a living supervisor there is no server.

        ``UNKNOWN`` if a supervisor lives and its record is missing or damaged.
        """
        if self.record is None:
            return State.UNKNOWN if self.alive else State.ABSENT
        if self.record.state in _LIVING and not self.alive and not self.record.found:
            return State.ABSENT
        return self.record.state

    @property
    def is_leaving(self) -> bool:
        """Whether a supervisor is on its way out: it still holds the proof of life."""
        return self.alive and self.state not in (State.STARTING, State.READY)

    @property
    def origin(self) -> Origin:
        """Whose server it is."""
        return "found" if self.record is not None and self.record.found else "own"

    def serves(self, spec: ServerSpec) -> bool:
        """Return whether it is ready, or will be, and meets the constraints of ``spec``."""
        own, endpoint = self.record, self.record.endpoint if self.record else None
        if own is None or self.state not in (State.STARTING, State.READY):
            return False
        return spec.accepts(
            own.engine or "",
            # Before it is ready, what was asked for is all that is known of the device.
            own.device or own.spec.device or spec.device,
            endpoint.context_tokens if endpoint else own.spec.context_tokens,
        )

    def server(self, *, started: bool = False) -> Server | None:
        """Return it as a server to use; None when it is not ready."""
        own = self.record
        if own is None or own.endpoint is None or self.state is not State.READY:
            return None
        kept = "started it just now" if started else "keeps it"
        return Server(
            endpoint=own.endpoint,
            origin=self.origin,
            reason=own.reason if own.found else f"emberd {kept} with the engine {own.engine}",
            started=started,
            engine=own.engine,
            start_id=own.start_id,
            folder=str(self.folder),
            notes=own.notes,
            options=None if own.found else own.options,
        )

    def held_back(
        self, spec: ServerSpec, options: StartOptions, cool_down_s: float
    ) -> StartError | None:
        """Return the failure that a start would only repeat; None if one is worth it."""
        own = self.record
        if own is None or (own.spec, own.options) != (spec, options):
            return None
        if time.monotonic() - own.since_s > cool_down_s:
            return None
        killed_once = own.failure is not None and own.failure.killed and own.attempts < ATTEMPTS
        if self.state is State.FAILED and own.failure is not None and own.failure.starting:
            return None if killed_once else own.start_error()
        # A supervisor that the kernel killed wrote no failure; the count was written before it.
        if own.state is State.STARTING and not self.alive and own.attempts >= ATTEMPTS:
            return StartError(
                f"{own.attempts} starts in a row were killed before the server was ready",
                advice="Is memory short? Look at the kernel's log, then run `emberd up`.",
                log_path=own.log_path,
            )
        return None

    def status(self) -> ServerStatus | None:
        """Return what the record tells; None when there is none (see ``lost_records.status``)."""
        own = self.record
        if own is None:
            return None
        living = self.state in _LIVING
        return ServerStatus(
            key=self.folder.name,
            spec=own.spec,
            state=self.state,
            seconds=time.monotonic() - own.since_s,
            url=own.endpoint.url if own.endpoint and living else None,
            engine=own.engine,
            device=own.device,
            origin=self.origin,
            supervisor_pid=own.supervisor.pid if own.supervisor and self.alive else None,
            idle_timeout=None if own.found else idle.asked_for(self.folder),
            detail=self._detail(),
            log_path=own.log_path,
            start_id=own.start_id,
            api_key=own.endpoint.api_key if own.endpoint else None,
            listener=own.endpoint.listener if own.endpoint else None,
        )

    def _detail(self) -> str:
        own = self.record
        if own is None:
            return ""
        if self.state is State.FAILED and own.failure:
            return own.failure.cause
        if self.state is State.ABSENT and own.state in _LIVING:
            return f"its supervisor ended while the server was {own.state}"
        return own.progress or own.reason


def look(folder: Path) -> View:
    """Return what ``folder`` holds now.

    Raises:
        StateFolderError: It is not ours alone, or another version's.
    """
    try:
        folders.check_private(folder)
    except FileNotFoundError:
        return View(folder, None, alive=False)
    # The proof of life comes second: a supervisor that ends in between has written its last record
    # before, so at worst a living server reads as absent, and the lock decides.
    try:
        own = record.read(folder)
    except StateFolderError:
        if alive.is_held(folder):
            raise
        own = None
    return View(folder, own, alive=alive.is_held(folder))


def settled(folder: Path, deadline_s: float, poll_s: float) -> View:
    """Do as ``look``, but wait until the supervisor has rewritten a record that is lost.

    Args:
        folder: The server's state folder.
        deadline_s: When to give up, on the monotonic clock, in seconds; the state is then
            ``UNKNOWN``.
        poll_s: How often to look, in seconds.

    Raises:
        StateFolderError: It is not ours alone, or another version's.
    """
    while (view := look(folder)).state is State.UNKNOWN and time.monotonic() < deadline_s:
        time.sleep(poll_s)
    return view


def listens(endpoint: Endpoint) -> bool:
    """Return whether the verified listener of a managed server is still there, or may be."""
    return endpoint.listener is not None and listeners.is_there(endpoint.url, endpoint.listener)

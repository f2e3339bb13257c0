"""The data model: a server's record, its folder as a reader sees it, and what callers get.

A record has one writer at a time, the holder of the liveness lock, and any number of readers. The
file is replaced as a whole, so a reader sees the old record or the new one and never a part. If
another process damages the file, the running supervisor rewrites it (``state_repair``); readers
treat a damaged record as a missing one.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Literal, Protocol
from urllib.parse import urlsplit

import msgspec

from emberd import env
from emberd.endpoint import Endpoint
from emberd.engines.base import DRAIN_S, phase_of
from emberd.engines.gpu_usage import GpuMemory
from emberd.errors import StartError, StartTimeoutError, StateFolderError
from emberd.manager import idle, locks, paths
from emberd.manager.gateway_facts import GatewayFacts
from emberd.settings import ServerSpec, StartOptions
from emberd.system import atomic_file, listeners, ownership
from emberd.system.listeners import Listener
from emberd.system.log_rules import Diagnosis
from emberd.system.processes import ProcessIdentity

SCHEMA: Final = 4
RECORD_NAME: Final = "record.json"
PLANNING: Final = "planning"
"""The first phase of a start."""
MAX_KILLED_STARTS: Final = 3
"""Starts in a row that may be killed from outside before the next one is refused."""
_LOST: Final = Diagnosis(
    "its supervisor was killed",
    "The machine may be out of memory: check the kernel log, then run `emberd up`.",
    killed=True,
)

Origin = Literal["given", "own", "found"]


class OtherVersionError(StateFolderError):
    """The record was written by another version of emberd, in a format unknown to this one."""


class State(StrEnum):
    """Where a server is in its life cycle.

    A record whose supervisor is dead reads as ``ABSENT``, or as ``FAILED`` if it says so. A running
    server without a readable record is ``UNKNOWN``; a record never contains that value.
    """

    ABSENT = "absent"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"
    UNKNOWN = "unknown"


RUNNING: Final = (State.STARTING, State.READY, State.STOPPING)
"""The states of a server that has processes."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Periods and deadlines of the manager and its supervisors, in seconds.

    Attributes:
        poll_s: How often a starting server, or its record, is checked.
        tick_s: How often a supervisor checks a running server.
        look_s: How often a supervisor reads the counters of a server that no client has reported,
            if its idle timeout does not require more: see ``IdleMonitor.is_reading_due``.
        lock_s: How long ``ensure`` waits for the start lock.
        record_s: How long a reader waits for the supervisor to rewrite a lost record, a few times
            ``tick_s``.
        takeover_s: How long a new supervisor may take to publish its first record.
        cool_down_s: How long a failed start is not repeated.
        lost_s: How long a client that lost its server waits for the supervisor to notice.
        kill_s: How long killed processes may take to end.
        probe_s: Minimum time that a health probe of an unresponsive server is given.
        failed_probes: Failed health probes in a row, without progress, that end a server.
    """

    poll_s: float = 0.05
    tick_s: float = 2.0
    look_s: float = 60.0
    lock_s: float = 120.0
    record_s: float = 6.0
    takeover_s: float = 30.0
    cool_down_s: float = 60.0
    lost_s: float = 10.0
    kill_s: float = 10.0
    probe_s: float = 10.0
    failed_probes: int = 3


# ---------------------------------------------------------------- what callers get


@dataclass(frozen=True, slots=True)
class Server:
    """A verified server, ready for use.

    Attributes:
        endpoint: Its address and what it serves.
        origin: ``"given"`` by URL, ``"own"`` (started by emberd) or ``"found"`` (external).
        reason: Which server it is and why it was chosen, in one sentence.
        started: Whether this call started it.
        engine: Name of the engine; None if not known.
        start_id: Id of this start of it; None for a given one.
        folder: Its state folder; None for a given one.
        notes: What its users should know, a sentence each.
        options: How it was started; None for one that emberd did not start.
        phases: Each phase of its start, in order, and how long it took in seconds; empty for a
            server that emberd did not start.
    """

    endpoint: Endpoint
    origin: Origin
    reason: str
    started: bool = False
    engine: str | None = None
    start_id: str | None = None
    folder: str | None = None
    notes: tuple[str, ...] = ()
    options: StartOptions | None = None
    phases: Mapping[str, float] = field(default_factory=dict, hash=False)

    def unmet(self, asked: Mapping[str, Any]) -> list[str]:
        """Return the names of the start options in ``asked`` that this server does not have.

        Args:
            asked: Values by field name of ``StartOptions``.
        """
        if self.started:
            return []
        # Port and key are visible from outside; the rest is known only of emberd's own servers.
        seen = {"port": urlsplit(self.endpoint.url).port, "no_auth": self.endpoint.api_key is None}
        known = self.options or StartOptions()
        return [name for name in asked if asked[name] != seen.get(name, getattr(known, name))]

    def noting_unmet(self, overridden: Container[str] = ()) -> Server:
        """Return the server with a note for each start option of the environment it does not have.

        Args:
            overridden: Options that the caller passed, for which the environment is not used.

        Raises:
            SettingError: A variable cannot be parsed; the message names it.
        """
        asked = env.start_option_values(task=self.endpoint.task)
        names = [name for name in self.unmet(asked) if name not in overridden]
        return replace(self, notes=(*self.notes, *map(self._unmet_note, names)))

    def _unmet_note(self, name: str) -> str:
        # Without the value: arguments may contain secrets.
        variable, url = env.start_option_variable(name, self.endpoint.task), self.endpoint.url
        if self.origin == "given":
            return f"{variable} has no effect: the server at {url} was given, and none is started."
        if self.origin == "found":
            return f"{variable} has no effect: emberd did not start the server at {url}."
        return (
            f"{variable} has no effect: the server at {url} is already running and was started "
            f"without it. To start one with it, run `emberd stop` first."
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a starting server.

    Attributes:
        text: What it is doing.
        seconds: How long the start has taken so far.
        log_path: Path of its log.
        phase_seconds: How long the current phase has taken so far; None if there are no phases.
    """

    text: str
    seconds: float
    log_path: str
    phase_seconds: float | None = None

    def timed_out(self) -> StartTimeoutError:
        """Return the error for a caller whose ``start_timeout`` has expired."""
        doing = self.text or "no progress reported yet"
        return StartTimeoutError(
            f"The server is still starting after {self.seconds:.0f} s ({doing}), and start_timeout "
            f"expired. Startup continues in the background: call again to wait for it, or pass "
            f"a longer start_timeout. Log: {self.log_path}"
        )


OnProgress = Callable[[Progress], None]


class Verify(Protocol):
    """Requests a real embedding from a server and returns the verified endpoint.

    The client passes it in, because the manager does not import the client.
    """

    def __call__(
        self,
        url: str,
        api_key: str | None,
        spec: ServerSpec,
        listener: Listener | None,
        /,
        *,
        batch_size: int | None = None,
    ) -> Endpoint:
        """Raise if the server does not serve the spec.

        Args:
            url: Root of the server.
            api_key: Its key, or None.
            spec: What is requested.
            listener: The one that must answer; None for whichever is there.
            batch_size: Most texts in a request; None if there is no limit.
        """


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What is known about one server.

    Attributes:
        key: The 16 digits of its identity, with a number for a second server of it.
        spec: What was requested.
        state: Where it is in its life cycle.
        seconds: How long it has been in this state.
        url: Its root URL while it runs.
        engine: Name of its engine.
        device: Where the model runs.
        origin: ``"own"`` or ``"found"``.
        supervisor_pid: Process id of its supervisor while that runs.
        idle_timeout: Idle seconds after which it stops; None for never.
        detail: Progress, failure or reason, in words.
        log_path: Path of its log; empty for external servers.
        start_id: Id of this start.
        api_key: Its key, for other clients. Never printed.
        listener: The verified listening socket, if it is on this machine.
        phases: Each completed phase of its start, in order, and how long it took in seconds.
        gpu_memory: What was planned for it on its GPUs; None if that is not known.
        unused_s: How long it has not been used, as its supervisor counts; None if that is unknown.
    """

    key: str
    spec: ServerSpec
    state: State
    seconds: float
    url: str | None = None
    engine: str | None = None
    device: str | None = None
    origin: Origin = "own"
    supervisor_pid: int | None = None
    idle_timeout: float | None = None
    detail: str = ""
    log_path: str = ""
    start_id: str = ""
    api_key: str | None = field(default=None, repr=False)
    listener: Listener | None = None
    phases: Mapping[str, float] = field(default_factory=dict, hash=False)
    gpu_memory: GpuMemory | None = None
    unused_s: float | None = None


# ---------------------------------------------------------------- the record


@dataclass(frozen=True, slots=True)
class Record:
    """The state of one server or of the gateway, as its supervisor publishes it.

    Attributes:
        state: Where it is in its life cycle.
        start_id: Random id of this start.
        spec: What was requested; for the gateway a placeholder.
        timing: The periods that its supervisor uses.
        since_s: When this state began, on the monotonic clock of this boot, in seconds.
        attempts: 1, and how many starts in a row before this one were killed before ``READY``.
        supervisor: Its supervisor; None before that has taken over, and for external servers.
        engine: Name of the engine that serves.
        device: Where the model runs; None if not known.
        endpoint: Its address, once verified.
        progress: What it is doing while it starts.
        failure: Why it failed.
        was_ready: Whether it failed after it was ready; an earlier failure delays the next start.
        reason: Why it is absent, or why an external server is used.
        stopped_by_user: The stop was requested; clients must not restart it when they reconnect.
        found: An external server: emberd never stops it, and it has no supervisor.
        drain_s: How long its requests may take to finish when it stops, in seconds.
        log_path: Path of the server's log; empty for external servers.
        options: How it was to be started.
        notes: What its users should know.
        scratch: Folder of its temporary files; empty if it has none.
        phases: Each completed phase of the start, in order, with its seconds.
        gpu_memory: What was planned for it on its GPUs; None if that is not known, or not yet.
        gateway: What the gateway is; None for a server.
    """

    state: State
    start_id: str
    spec: ServerSpec
    timing: Timing
    since_s: float
    attempts: int = 0
    supervisor: ProcessIdentity | None = None
    engine: str | None = None
    device: str | None = None
    endpoint: Endpoint | None = None
    progress: str = ""
    failure: Diagnosis | None = None
    was_ready: bool = False
    reason: str = ""
    stopped_by_user: bool = False
    found: bool = False
    drain_s: float = DRAIN_S
    log_path: str = ""
    options: StartOptions = field(default_factory=StartOptions)
    notes: tuple[str, ...] = ()
    scratch: str = ""
    phases: Mapping[str, float] = field(default_factory=dict, hash=False)
    gpu_memory: GpuMemory | None = None
    gateway: GatewayFacts | None = None
    schema: int = field(default=SCHEMA)

    @property
    def was_killed(self) -> bool:
        """Whether the start was killed from outside, provided that its supervisor has ended."""
        if self.state is State.FAILED and self.failure is not None:
            return self.failure.killed
        return self.state is State.STARTING

    def phase_seconds(self, now_s: float) -> float:
        """Return how long the current phase of a start has taken at ``now_s``."""
        return now_s - self.since_s - sum(self.phases.values())

    def completed_phases(self, now_s: float) -> dict[str, float]:
        """Return the phases, if the current one ends at ``now_s``; one may come several times."""
        name = phase_of(self.progress)
        seconds = self.phases.get(name, 0.0) + self.phase_seconds(now_s)
        return {**self.phases, name: round(seconds, 3)}

    def start_error(self) -> StartError:
        """Return the recorded failure as the error that all waiting callers get."""
        failure = self.failure or Diagnosis("The server did not start")
        return StartError(failure.cause, advice=failure.advice, log_path=self.log_path or None)


# At the first use of a class, msgspec stores an incomplete description of it first. Another thread
# that uses the class then crashes the process (0.22.0). An import has one thread.
msgspec.json.Decoder(Record)


def read_record(folder: Path) -> Record | None:
    """Return the record in ``folder``; None if it is missing or damaged.

    Raises:
        OtherVersionError: Another version of emberd wrote it, in an unknown format.
        StateFolderError: The disk could not be read.
    """
    try:
        content = json.loads(paths.read_file(folder / RECORD_NAME) or b"")
        schema = content["schema"]
        if type(schema) is int and schema != SCHEMA:
            raise OtherVersionError(
                f"{folder / RECORD_NAME} has schema {schema}, but this version of emberd uses "
                f"{SCHEMA}: the server was started by another version. Run `emberd stop` to end "
                f"it, or use that version."
            )
        # Fields that a later version added to the same schema are ignored.
        own = msgspec.convert(content, Record)
    except (ValueError, KeyError, TypeError, RecursionError, msgspec.ValidationError):
        return None
    return None if own.state is State.UNKNOWN else own  # a record never has that state


def read_last_record(folder: Path) -> Record | None:
    """Read the record of a folder without a supervisor; None for one of another version."""
    try:
        return read_record(folder)
    except StateFolderError:
        return None


def write_record(
    folder: Path, record: Record, before_rename: Callable[[], None] | None = None
) -> None:
    """Replace the record in ``folder``; only the holder of the liveness lock may call this.

    Args:
        folder: The state folder.
        record: Its new record.
        before_rename: See ``atomic_file.replacing``.

    Raises:
        OSError: The file cannot be written; the old record is unchanged.
    """
    file = folder / RECORD_NAME
    if file.is_dir():
        paths.remove(file)
    # A link with the name of the record is replaced, not followed out of the private folder.
    with atomic_file.replacing(
        file, mode=0o600, follow_links=False, before_rename=before_rename
    ) as out:
        out.write(serialize_record(record))


def serialize_record(record: Record) -> bytes:
    """Return the content of the file for ``record``."""
    return json.dumps(asdict(record), indent=1).encode()


# ---------------------------------------------------------------- a folder as a reader sees it


@dataclass(frozen=True, slots=True)
class ServerSnapshot:
    """A state folder's record, and whether its supervisor was running when it was read.

    Attributes:
        folder: The server's state folder.
        record: The record; None if there is none.
        alive: Whether a process holds the liveness lock.
    """

    folder: Path
    record: Record | None
    alive: bool

    @property
    def state(self) -> State:
        """The effective state: without a running supervisor there is no server.

        ``UNKNOWN`` if a supervisor runs and its record is missing or damaged.
        """
        if self.record is None:
            return State.UNKNOWN if self.alive else State.ABSENT
        if self.record.state in RUNNING and not self.alive and not self.record.found:
            return State.ABSENT
        return self.record.state

    @property
    def is_ending(self) -> bool:
        """Whether a supervisor is ending: it still holds the liveness lock."""
        return self.alive and self.state not in (State.STARTING, State.READY)

    @property
    def origin(self) -> Origin:
        """``"found"`` for an external server, else ``"own"``."""
        return "found" if self.record is not None and self.record.found else "own"

    def serves(self, spec: ServerSpec) -> bool:
        """Return whether it is ready, or starting, and meets the constraints of ``spec``."""
        own, endpoint = self.record, self.record.endpoint if self.record else None
        if own is None or self.state not in (State.STARTING, State.READY):
            return False
        return spec.accepts(
            own.engine or "",
            # Before it is ready, only the requested device is known.
            own.device or own.spec.device or spec.device,
            endpoint.context_tokens if endpoint else own.spec.context_tokens,
            deterministic=own.spec.deterministic,
        )

    def server(self, *, started: bool = False) -> Server | None:
        """Return it as a server to use; None if it is not ready."""
        own = self.record
        if own is None or own.endpoint is None or self.state is not State.READY:
            return None
        how = "just started it" if started else "is already running it"
        return Server(
            endpoint=own.endpoint,
            origin=self.origin,
            reason=own.reason if own.found else f"emberd {how} with the engine {own.engine}",
            started=started,
            engine=own.engine,
            start_id=own.start_id,
            folder=str(self.folder),
            notes=(*own.notes, *own.endpoint.notes),
            options=None if own.found else own.options,
            phases=own.phases,
        )

    def recent_failure(
        self, spec: ServerSpec, options: StartOptions, cool_down_s: float
    ) -> StartError | None:
        """Return the failure that another start would repeat; None if a start is worth trying."""
        own = self.record
        if own is None or (own.spec, own.options) != (spec, options):
            return None
        is_recent = time.monotonic() - own.since_s <= cool_down_s
        return self.start_failure() if is_recent else None

    def start_failure(self) -> StartError | None:
        """Return why a start failed; None if it did not, or was killed and is worth repeating."""
        own = self.record
        # The count of attempts was written before the start: a killed supervisor writes nothing.
        is_lost = own is not None and own.state is State.STARTING and not self.alive
        if own is None or own.was_ready or not (is_lost or self.state is State.FAILED):
            return None
        if not own.was_killed:
            return own.start_error()
        if own.attempts < MAX_KILLED_STARTS:
            return None
        last = own.failure or _LOST
        return StartError(
            f"{own.attempts} starts in a row were killed before the server was ready, the last "
            f"time: {last.cause}",
            advice=last.advice,
            log_path=own.log_path,
        )

    def status(self) -> ServerStatus | None:
        """Return the status by the record; None without one (``lost_records.server_status``)."""
        own = self.record
        if own is None:
            return None
        running, idle_s = self.state in RUNNING, idle.requested_s(self.folder)
        is_watched = self.state is State.READY and not own.found
        if self.state is State.FAILED and own.failure:
            detail = own.failure.cause
        elif self.state is State.ABSENT and own.state in RUNNING:
            detail = f"its supervisor ended while the server was {own.state}"
        else:
            detail = own.progress or own.reason
        return ServerStatus(
            key=self.folder.name,
            spec=own.spec,
            state=self.state,
            seconds=time.monotonic() - own.since_s,
            url=own.endpoint.url if own.endpoint and running else None,
            engine=own.engine,
            device=own.device,
            origin=self.origin,
            supervisor_pid=own.supervisor.pid if own.supervisor and self.alive else None,
            idle_timeout=None if own.found or math.isinf(idle_s) else idle_s,
            detail=detail,
            log_path=own.log_path,
            start_id=own.start_id,
            api_key=own.endpoint.api_key if own.endpoint else None,
            listener=own.endpoint.listener if own.endpoint else None,
            phases=own.phases,
            gpu_memory=own.gpu_memory if running else None,
            unused_s=idle.unused_s(self.folder) if is_watched else None,
        )


def snapshot(folder: Path) -> ServerSnapshot:
    """Return the current content of ``folder``.

    Raises:
        StateFolderError: It is not private to this user, or was written by another version.
    """
    try:
        ownership.check_private(folder)
    except FileNotFoundError:
        return ServerSnapshot(folder, None, alive=False)
    # The lock is probed second: a supervisor that ends in between has already written its last
    # record, so at worst a running server reads as absent, and the start lock decides.
    try:
        own = read_record(folder)
    except StateFolderError:
        if locks.is_alive(folder):
            raise
        own = None
    return ServerSnapshot(folder, own, alive=locks.is_alive(folder))


def settled_snapshot(folder: Path, deadline_s: float, poll_s: float) -> ServerSnapshot:
    """Return a snapshot, after waiting for the supervisor to rewrite a lost record.

    Args:
        folder: The server's state folder.
        deadline_s: When to give up, on the monotonic clock; the state is then ``UNKNOWN``.
        poll_s: How often to check, in seconds.

    Raises:
        StateFolderError: It is not private to this user, or was written by another version.
    """
    while (seen := snapshot(folder)).state is State.UNKNOWN and time.monotonic() < deadline_s:
        time.sleep(poll_s)
    return seen


def is_listening(endpoint: Endpoint) -> bool:
    """Return whether the verified listener of ``endpoint`` still listens, as far as is known."""
    return endpoint.listener is not None and listeners.is_there(endpoint.url, endpoint.listener)

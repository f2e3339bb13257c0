"""What a server's record says, and how it is read and replaced.

One writer at a time (the holder of ``alive``) and any number of readers: the file is replaced
as a whole, so a reader sees the old record or the new one, never half of one. What others do to
the file is repaired by the living supervisor (``statefiles``); a reader takes a damaged record for
a missing one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Final, Literal, TypeVar, get_args, get_type_hints
from urllib.parse import urlsplit

from emberd import settings
from emberd.endpoint import Endpoint
from emberd.engines.base import DRAIN_S
from emberd.errors import StartError, StartTimeoutError, StateFolderError
from emberd.manager import idle, liveness, paths
from emberd.settings import ServerSpec, StartOptions
from emberd.system import listeners
from emberd.system.listeners import Listener
from emberd.system.processes import ProcessIdentity

SCHEMA: Final = 3
RECORD_NAME: Final = "record.json"
_T = TypeVar("_T")


class OtherVersionError(StateFolderError):
    """A living supervisor of another version of emberd keeps the record, in a form of its own."""


class State(StrEnum):
    """Where a server is in its life.

    A record whose supervisor is dead reads as ``ABSENT``, or as ``FAILED`` when it says so. Without
    a readable record, a server that lives is ``UNKNOWN``; no record says that of itself.
    """

    ABSENT = "absent"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a server failed.

    Attributes:
        cause: What happened, in one sentence.
        advice: What to do about it.
        at_s: When, on the monotonic clock of this boot, in seconds.
        starting: Whether it had not been ready yet; only then is a repetition held back.
        killed: Whether it was killed from outside; a few times, that is worth another start.
    """

    cause: str
    advice: str
    at_s: float
    starting: bool
    killed: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """The state of one server, as its supervisor publishes it.

    Attributes:
        state: Where it is in its life.
        start_id: Random name of this start; what follows a start carries it.
        spec: What was asked for.
        timing: The periods its supervisor lives by.
        since_s: When this state began, on the monotonic clock of this boot, in seconds.
        attempts: Starts in a row that did not reach ``READY``, this one included.
        supervisor: Its supervisor, or None before it has taken over and for servers of others.
        engine: Name of the engine that serves.
        device: Where the model runs; None when not known.
        endpoint: Where it answers, once verified.
        progress: What it is doing while it starts.
        failure: Why it failed.
        reason: Why it is absent, or why it was adopted.
        stopped_by_person: Somebody asked for the stop; clients must not undo it by healing.
        found: Somebody else's server: never stopped by us, and there is no supervisor.
        drain_s: How long its requests may take to finish when it stops, in seconds.
        log_path: The server's log; empty for servers of others.
        options: How it was to be started.
        notes: What whoever uses it should know.
        scratch: Folder of its temporary files; empty when it has none.
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
    failure: Failure | None = None
    reason: str = ""
    stopped_by_person: bool = False
    found: bool = False
    drain_s: float = DRAIN_S
    log_path: str = ""
    options: StartOptions = field(default_factory=StartOptions)
    notes: tuple[str, ...] = ()
    scratch: str = ""
    schema: int = field(default=SCHEMA)

    def start_error(self) -> StartError:
        """Return the recorded failure as the error that every waiter gets."""
        failure = self.failure or Failure("The server did not start", "", self.since_s, True)
        return StartError(failure.cause, advice=failure.advice, log_path=self.log_path or None)


def read_record(folder: Path) -> Record | None:
    """Return the record in ``folder``; None when there is none or it is damaged.

    Raises:
        OtherVersionError: Another version of emberd wrote it in a form this one does not know.
        StateFolderError: The disk could not be read.
    """
    try:
        content = json.loads(paths.read_file(folder / RECORD_NAME) or b"")
        schema = content["schema"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if type(schema) is not int:
        return None
    if schema != SCHEMA:
        raise OtherVersionError(
            f"{folder / RECORD_NAME} has schema {schema}, and this emberd knows {SCHEMA}: another "
            f"version keeps this server. Run `emberd stop` to end it, or use that version."
        )
    try:
        return _from_json(content)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def read_last_record(folder: Path) -> Record | None:
    """Read the record of a folder without a supervisor; None for one of another version."""
    try:
        return read_record(folder)
    except StateFolderError:
        return None


def write_record(folder: Path, record: Record) -> None:
    """Replace the record in ``folder``; only the holder of ``alive`` may."""
    write_serialized(folder, serialize_record(record))


def serialize_record(record: Record) -> bytes:
    """Return what the file holds for ``record``."""
    return json.dumps(asdict(record), indent=1).encode()


def write_serialized(folder: Path, content: bytes) -> None:
    """Do as ``write``, with the record as ``serialised`` returned it."""
    # One fixed name: there is one writer at a time, and what a killed one leaves half-written
    # is replaced by the next.
    fresh = folder / f"{RECORD_NAME}.new"
    paths.create(fresh, content, sync=True)
    try:
        fresh.replace(folder / RECORD_NAME)
    except IsADirectoryError:
        paths.remove(folder / RECORD_NAME)
        fresh.replace(folder / RECORD_NAME)


def _from_json(content: dict[str, Any]) -> Record:
    state = State(content["state"])
    if state is State.UNKNOWN:
        raise ValueError("no record says of itself that it is lost")
    return replace(
        _known(Record, content),
        state=state,
        spec=_known(ServerSpec, content["spec"]),
        timing=_known(Timing, content["timing"]),
        supervisor=_optional(ProcessIdentity, content["supervisor"]),
        endpoint=_endpoint(content["endpoint"]),
        failure=_optional(Failure, content["failure"]),
        options=_known(StartOptions, content.get("options", {})),
        notes=tuple(content.get("notes", ())),
    )


def _known(kind: type[_T], content: dict[str, Any]) -> _T:
    # A later version of the same schema may have added fields; they do no harm.
    scalars = _scalars(kind)  # type: ignore[arg-type]
    known = {name: value for name, value in content.items() if name in scalars}
    for name, value in known.items():
        if (allowed := scalars[name]) and not isinstance(value, allowed):
            raise TypeError(f"{name} is {value!r}")
    return kind(**known)


@cache
def _scalars(kind: Any) -> dict[str, tuple[type[Any], ...]]:
    """Return the types that each field may have in JSON; none for those that are objects."""
    hints = get_type_hints(kind)
    allowed: dict[str, tuple[type[Any], ...]] = {}
    for name in (f.name for f in fields(kind)):
        hint = hints[name]
        types = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        simple = all(each in (str, int, float, bool, type(None)) for each in types)
        # JSON writes a whole number of seconds without a fraction.
        allowed[name] = (*types, *([int] if float in types else [])) if simple else ()
    return allowed


def _endpoint(content: dict[str, Any] | None) -> Endpoint | None:
    endpoint = _optional(Endpoint, content)
    if content is None or endpoint is None:
        return None
    return replace(endpoint, listener=_optional(Listener, content["listener"]), canary=())


def _optional(kind: type[_T], content: dict[str, Any] | None) -> _T | None:
    return None if content is None else _known(kind, content)


ATTEMPTS: Final = 3
"""Starts in a row that may be killed from outside before they are held to be the cause."""

_LIVING: Final = (State.STARTING, State.READY, State.STOPPING)


@dataclass(frozen=True, slots=True)
class ServerSnapshot:
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


def snapshot(folder: Path) -> ServerSnapshot:
    """Return what ``folder`` holds now.

    Raises:
        StateFolderError: It is not ours alone, or another version's.
    """
    try:
        paths.check_private(folder)
    except FileNotFoundError:
        return ServerSnapshot(folder, None, alive=False)
    # The proof of life comes second: a supervisor that ends in between has written its last record
    # before, so at worst a living server reads as absent, and the lock decides.
    try:
        own = read_record(folder)
    except StateFolderError:
        if liveness.is_held(folder):
            raise
        own = None
    return ServerSnapshot(folder, own, alive=liveness.is_held(folder))


def settled_snapshot(folder: Path, deadline_s: float, poll_s: float) -> ServerSnapshot:
    """Do as ``look``, but wait until the supervisor has rewritten a record that is lost.

    Args:
        folder: The server's state folder.
        deadline_s: When to give up, on the monotonic clock, in seconds; the state is then
            ``UNKNOWN``.
        poll_s: How often to look, in seconds.

    Raises:
        StateFolderError: It is not ours alone, or another version's.
    """
    while (view := snapshot(folder)).state is State.UNKNOWN and time.monotonic() < deadline_s:
        time.sleep(poll_s)
    return view


def is_listening(endpoint: Endpoint) -> bool:
    """Return whether the verified listener of a managed server is still there, or may be."""
    return endpoint.listener is not None and listeners.is_there(endpoint.url, endpoint.listener)


Origin = Literal["given", "own", "found"]


@dataclass(frozen=True, slots=True)
class Server:
    """A verified server, ready for use.

    Attributes:
        endpoint: Where it answers and what it serves.
        origin: ``"given"`` by URL, ``"own"`` (kept by emberd) or ``"found"`` (external).
        reason: Which server it is and why this one, in one sentence.
        started: Whether this call started it.
        engine: Name of the engine; None when not known.
        start_id: Name of this start of it; None for a given one.
        folder: Its state folder; None for a given one.
        notes: What whoever uses it should know, a sentence each.
        options: How it was started; None for one that emberd did not start.
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

    def unmet(self, asked: Mapping[str, Any]) -> list[str]:
        """Return the names of the start options in ``asked`` that this server does not have.

        Args:
            asked: Values by the fields of ``StartOptions``.
        """
        if self.started:
            return []
        # The port and the key are seen from outside; the rest is known of emberd's servers only.
        seen = {"port": urlsplit(self.endpoint.url).port, "no_auth": self.endpoint.api_key is None}
        known = self.options or StartOptions()
        return [name for name in asked if asked[name] != seen.get(name, getattr(known, name))]

    def noting_unmet(self, overridden: Container[str] = ()) -> Server:
        """Return the server with a note for each start option of the environment it does not have.

        Args:
            overridden: Options that the caller gave, which the environment has no say in.

        Raises:
            SettingError: A variable cannot be read; it is named.
        """
        asked = settings.in_environment()
        names = [name for name in self.unmet(asked) if name not in overridden]
        return replace(self, notes=(*self.notes, *map(self._unmet_note, names)))

    def _unmet_note(self, name: str) -> str:
        # Without the value: arguments may hold secrets.
        variable, url = settings.variable(name), self.endpoint.url
        if self.origin == "given":
            return f"{variable} has no effect: the server at {url} was given, and none is started."
        if self.origin == "found":
            return f"{variable} has no effect: emberd did not start the server at {url}."
        return (
            f"{variable} has no effect: the server at {url} runs already and was started without "
            f"it. To start one with it, run `emberd stop` first."
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a starting server is.

    Attributes:
        text: What it is doing.
        seconds: How long the start has taken so far.
        log_path: Its log.
    """

    text: str
    seconds: float
    log_path: str

    def timed_out(self) -> StartTimeoutError:
        """Return the error of a caller that waits for the start no longer."""
        doing = self.text or "it reports no progress yet"
        return StartTimeoutError(
            f"The server has been starting for {self.seconds:.0f} s ({doing}) and start_timeout is "
            f"over. The start goes on: ask again to join it, or give a longer start_timeout. Log: "
            f"{self.log_path}"
        )


OnProgress = Callable[[Progress], None]

Verify = Callable[[str, str | None, ServerSpec, Listener | None], Endpoint]
"""Asks a server (URL, key) for a real embedding and returns what it is; raises when it does not
serve the spec. The listener is the one that must answer; None for whichever is there. It comes from
the client, which the manager does not know."""


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What is known of one server from its record.

    Attributes:
        key: The identity's 16 digits, and a number for a second server of it.
        spec: What was asked for.
        state: Where it is in its life.
        seconds: How long it has been there.
        url: Its root while it answers.
        engine: Name of its engine.
        device: Where the model runs.
        origin: ``"own"`` or ``"found"``.
        supervisor_pid: Process id of its supervisor while that lives.
        idle_timeout: Idle seconds after which it stops; None for never.
        detail: Progress, failure or reason, in words.
        log_path: Its log; empty for servers of others.
        start_id: Name of this start.
        api_key: Its key, for clients of other kinds. Never printed.
        listener: The verified listening socket, if it is on this machine.
    """

    key: str
    spec: ServerSpec
    state: State
    seconds: float
    url: str | None
    engine: str | None
    device: str | None
    origin: Origin
    supervisor_pid: int | None
    idle_timeout: float | None
    detail: str
    log_path: str
    start_id: str
    api_key: str | None = field(default=None, repr=False)
    listener: Listener | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """Periods and deadlines of the manager and its supervisors, in seconds.

    Attributes:
        poll_s: How often a starting server, or its record, is checked.
        tick_s: How often a supervisor checks a running server.
        look_s: How often a supervisor reads the counters of a server that no client has reported;
            each reading costs the server some milliseconds of CPU time.
        lock_s: How long ``ensure`` waits for the start lock.
        record_s: How long a reader waits for the supervisor to rewrite a lost record, a few times
            ``tick_s``.
        takeover_s: How long a starter waits for the first sign of its supervisor.
        cool_down_s: How long a failed start is not repeated.
        lost_s: How long a healing client lets the supervisor notice a death.
        kill_s: How long killed processes may take to be gone.
        suspicion_s: How long a probe of a suspected server gives it to move.
        suspicion_probes: Failed probes in a row, without progress, that end a server.
    """

    poll_s: float = 0.05
    tick_s: float = 2.0
    look_s: float = 20.0
    lock_s: float = 120.0
    record_s: float = 6.0
    takeover_s: float = 30.0
    cool_down_s: float = 60.0
    lost_s: float = 10.0
    kill_s: float = 10.0
    suspicion_s: float = 10.0
    suspicion_probes: int = 3

"""What a server's record says, and how it is read and replaced.

One writer at a time (the holder of ``alive``) and any number of readers: the file is replaced
as a whole, so a reader sees the old record or the new one, never half of one. What others do to
the file is repaired by the living supervisor (``statefiles``); a reader takes a damaged record for
a missing one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Final, TypeVar, get_args, get_type_hints

from emberd.endpoint import Endpoint
from emberd.engines.base import DRAIN_S
from emberd.errors import StartError, StateFolderError
from emberd.manager import folders
from emberd.manager.timing import Timing
from emberd.settings import ServerSpec, StartOptions
from emberd.system.listeners import Listener
from emberd.system.processes import ProcessIdentity

SCHEMA: Final = 3
NAME: Final = "record.json"
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


def read(folder: Path) -> Record | None:
    """Return the record in ``folder``; None when there is none or it is damaged.

    Raises:
        OtherVersionError: Another version of emberd wrote it in a form this one does not know.
        StateFolderError: The disk could not be read.
    """
    try:
        content = json.loads(folders.read_file(folder / NAME) or b"")
        schema = content["schema"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if type(schema) is not int:
        return None
    if schema != SCHEMA:
        raise OtherVersionError(
            f"{folder / NAME} has schema {schema}, and this emberd knows {SCHEMA}: another "
            f"version keeps this server. Run `emberd stop` to end it, or use that version."
        )
    try:
        return _from_json(content)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def read_last(folder: Path) -> Record | None:
    """Read the record of a folder without a supervisor; None for one of another version."""
    try:
        return read(folder)
    except StateFolderError:
        return None


def write(folder: Path, record: Record) -> None:
    """Replace the record in ``folder``; only the holder of ``alive`` may."""
    write_content(folder, serialised(record))


def serialised(record: Record) -> bytes:
    """Return what the file holds for ``record``."""
    return json.dumps(asdict(record), indent=1).encode()


def write_content(folder: Path, content: bytes) -> None:
    """Do as ``write``, with the record as ``serialised`` returned it."""
    # One fixed name: there is one writer at a time, and what a killed one leaves half-written
    # is replaced by the next.
    fresh = folder / f"{NAME}.new"
    folders.create(fresh, content, sync=True)
    try:
        fresh.replace(folder / NAME)
    except IsADirectoryError:
        folders.remove(folder / NAME)
        fresh.replace(folder / NAME)


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

"""What happened to the servers of a home, kept after their records and logs were replaced.

``<home>/history.jsonl`` has one JSON object a line, appended in one write, by whichever process
knows the event: the supervisor, the process that starts or stops a server, or the orphan reaper.
When the file becomes too large it is renamed to ``history.jsonl.1``, in place of the older one, and
a new one begins. What the older one contained is counted in the line ``earlier`` at the end of the
renamed file, so that the counts of a home do not fall. It has a limited number of rows: the rarest
combinations of model, engine and phase are counted together, as those of the model ``OTHER``.

A history is worth less than a server: what cannot be written is left out, and what cannot be read
is skipped. Several machines may share a home, so each line names the machine.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from emberd.engines.base import phase_of
from emberd.errors import StateFolderError
from emberd.manager import paths
from emberd.manager.state import RUNNING, Record
from emberd.system import file_lock, ownership

NAME: Final = "history.jsonl"

START: Final = "start"
PORT_TAKEN: Final = "port_taken"
READY: Final = "ready"
START_FAILED: Final = "start_failed"
CRASHED: Final = "crashed"
HUNG: Final = "hung"
IDLE_STOP: Final = "idle_stop"
STOP_REQUESTED: Final = "stop_requested"
STOPPED: Final = "stopped"
FOLDER_GONE: Final = "folder_gone"
SUPERVISOR_STUCK: Final = "supervisor_stuck"
SUPERVISOR_KILLED: Final = "supervisor_killed"
"""Also written by ``orphan_reaper``, which imports nothing."""
ADOPTED: Final = "adopted"
PHASE: Final = "phase"
"""Only counted: a phase of a start that became ready."""

EVENTS: Final = (
    *(START, PORT_TAKEN, READY, START_FAILED, CRASHED, HUNG, IDLE_STOP, STOP_REQUESTED, STOPPED),
    *(FOLDER_GONE, SUPERVISOR_STUCK, SUPERVISOR_KILLED, ADOPTED),
)
"""All events that a line can have."""
ENDS: Final = frozenset(
    {START_FAILED, CRASHED, HUNG, IDLE_STOP, STOPPED, FOLDER_GONE, SUPERVISOR_KILLED}
)
"""The events after which a start is over. A gateway that is started again is ``READY`` again."""
UNKNOWN: Final = "unknown"
"""The phase of a start whose supervisor was killed, if the orphan reaper has noted it."""

GATEWAY: Final = "gateway"
"""The task of events of the gateway in the background."""

OTHER: Final = "other"
"""The model of counts that are kept only together."""

_EARLIER: Final = "earlier"
_MOST_BYTES: Final = 256 * 1024  # of each of the two files
_MOST_TEXT: Final = 1000  # characters of a cause
_MOST_COUNTS: Final = 500
_DIGITS: Final = 3  # of seconds
_READ_TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the history.

    Attributes:
        time: When it happened, in UTC, as in ISO 8601.
        event: What happened; one of the constants of this module.
        server: The name of its state folder.
        start_id: The id of the start that it concerns.
        model: The model; empty if it is not known, like the following ones.
        task: What the model does; ``GATEWAY`` for the gateway, whose ``model`` is "gateway".
        engine: The engine.
        machine: The boot and the namespaces in which it happened.
        facts: What else is known: seconds, phases, cause and others.
    """

    time: str
    event: str
    server: str = ""
    start_id: str = ""
    model: str = ""
    task: str = ""
    engine: str = ""
    machine: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False)


class Counted(NamedTuple):
    """What is counted together.

    Attributes:
        event: The event, or ``PHASE``.
        model: The model.
        task: What the model does.
        engine: The engine.
        phase: The phase of the start, or the one in which it ended; empty for all other events.
    """

    event: str
    model: str = ""
    task: str = ""
    engine: str = ""
    phase: str = ""


@dataclass(slots=True)
class Counts:
    """How often something happened, and how many seconds it took together."""

    times: Counter[Counted] = field(default_factory=Counter)
    seconds: dict[Counted, float] = field(default_factory=dict)

    def add(self, what: Counted, times: int, seconds: float) -> None:
        """Add to both counts."""
        self.times[what] += times
        self.seconds[what] = self.seconds.get(what, 0.0) + seconds

    def subtract(self, others: Counts) -> None:
        """Subtract other counts."""
        for what, times in others.times.items():
            self.add(what, -times, -others.seconds[what])


# ---------------------------------------------------------------- writing


def note(folder: Path, event: str, own: Record | None, **facts: Any) -> None:
    """Append an event of the server of ``folder``; does nothing if that is not possible.

    Args:
        folder: The server's state folder.
        event: One of the constants of this module.
        own: Its record, if it is known.
        **facts: What else is known, as JSON; what is None is left out. Texts are cut.
    """
    line: dict[str, Any] = {"time": _now(), "event": event, "server": folder.name}
    if own is not None:
        task = own.spec.task if own.gateway is None else GATEWAY
        line |= {"start_id": own.start_id, "model": own.spec.model, "task": task}
        line |= {"engine": own.engine}
    for name, value in facts.items():
        line[name] = value[:_MOST_TEXT] if isinstance(value, str) else value
    line["machine"] = folder.parents[1].name
    kept = {name: value for name, value in line.items() if value is not None}
    # No state is changed, and no caller can do anything about it: a full disk, a home that was
    # removed, a link or a directory with that name.
    with suppress(OSError, StateFolderError):
        _append(paths.Home.of(folder).root / NAME, json.dumps(kept, default=str))


def note_killed(folder: Path, own: Record) -> None:
    """Append that the supervisor of ``folder`` was killed, unless the history has that already.

    The caller holds the start lock, and knows that no supervisor runs.
    """
    if own.state not in RUNNING or own.found:
        return
    try:
        events = read(paths.Home.of(folder))
    except StateFolderError:
        return  # neither a start nor a stop fails because of it
    of_start = [each.event for each in events if each.start_id == own.start_id]
    last = [each for each in of_start if each == READY or each in ENDS][-1:]
    if not ENDS.intersection(last):
        note(folder, SUPERVISOR_KILLED, own, phase=phase_of(own.progress) or None)


def by_this_process() -> dict[str, Any]:
    """Return the facts that name the process which starts or stops a server."""
    # Without its arguments, which may contain secrets.
    script = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""
    return {"by_pid": os.getpid(), "by": script or os.path.basename(sys.executable or "")}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _append(path: Path, line: str) -> None:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
    descriptor = ownership.open_file(path, flags)
    try:
        facts = os.fstat(descriptor)
        if not ownership.is_own(facts):
            return
        if facts.st_size >= _MOST_BYTES and _is_blocked(path):
            return
        # The disk may have become full in the middle of the last line.
        is_torn = facts.st_size > 0 and os.pread(descriptor, 1, facts.st_size - 1) != b"\n"
        # One write: the kernel keeps the lines of several processes apart.
        os.write(descriptor, ("\n" * is_torn + line + "\n").encode())
        if facts.st_size >= _MOST_BYTES:
            _rotate(path, descriptor)
    finally:
        os.close(descriptor)


def _rotate(path: Path, descriptor: int) -> None:
    """Rename the file, which is open and too large, in place of the older one.

    Safe at any moment against a kill: until the file is renamed, readers ignore its ``earlier``.
    """
    if not file_lock.try_lock(descriptor):
        return  # another process does it
    if not os.path.samestat(os.fstat(descriptor), path.stat()):
        return  # another process has done it; what was just written is in the older file
    older = _older(path)
    before, own = _lines(_read(older)), _lines(_read(path))
    # What this file does not say by itself. That may also be less than nothing: without the first
    # line of its start, a kill is counted for no model.
    known = _tally(_earlier_of(before), _events([*before, *own]))
    known.subtract(_tally((), _events(own)))
    most = sorted(known.times.items(), key=lambda item: -abs(item[1]))
    for what, times in most[_MOST_COUNTS:]:
        together = Counted(what.event, OTHER)
        if what != together:
            known.add(together, times, known.seconds[what])
            known.add(what, -times, -known.seconds[what])
    kept = [
        [*what, times, round(known.seconds[what], _DIGITS)]
        for what, times in known.times.items()
        if times
    ]
    os.write(descriptor, f"{json.dumps({'event': _EARLIER, 'counts': kept})}\n".encode())
    path.replace(older)


def _is_blocked(path: Path) -> bool:
    """Return whether the file cannot be renamed, because a folder has the name of the older one."""
    older = _older(path)
    return older.is_dir() and not older.is_symlink()


def _older(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")


# ---------------------------------------------------------------- reading


def read(home: paths.Home) -> list[Event]:
    """Return the events that are kept, in the order in which they were written.

    Raises:
        StateFolderError: A file cannot be read although it may be intact.
    """
    older, newer = _contents(home)
    return list(_events([*_lines(older), *_lines(newer)]))


def count(home: paths.Home) -> Counts:
    """Return the counts of all events of servers, also of those that are kept no longer.

    Raises:
        StateFolderError: A file cannot be read although it may be intact.
    """
    older, newer = map(_lines, _contents(home))
    counts = _tally(_earlier_of(older), _events([*older, *newer]))
    # All seconds have this many digits. The last bits depend on the order in which they were added,
    # and a sum that falls by one of them would be taken for a restart.
    counts.seconds = {what: round(total, _DIGITS) for what, total in counts.seconds.items()}
    counts.times = +counts.times  # without those that a correction has made zero
    return counts


def version(home: paths.Home) -> tuple[int, ...]:
    """Return numbers that differ after each event."""
    path = home.root / NAME
    found: list[int] = []
    for each in (path, _older(path)):
        with suppress(OSError):
            facts = each.lstat()
            found += [facts.st_ino, facts.st_size]
    return tuple(found)


def _contents(home: paths.Home) -> tuple[bytes, bytes]:
    """Return the content of the older file and of the current one."""
    path = home.root / NAME
    for _ in range(_READ_TRIES):
        before = version(home)[::2]
        older, newer = _read(_older(path)), _read(path)
        if version(home)[::2] == before:
            break  # otherwise the file was renamed in between
    return older, newer


def _read(path: Path) -> bytes:
    return paths.read_file(path, truncate=True) or b""


def _lines(content: bytes) -> list[dict[str, Any]]:
    """Return the lines that are intact."""
    found = []
    for line in content.split(b"\n"):
        with suppress(ValueError, RecursionError):
            parsed = json.loads(line) if line else None
            if isinstance(parsed, dict) and isinstance(parsed.get("event"), str):
                found.append(parsed)
    return found


def _events(lines: Iterable[Mapping[str, Any]]) -> Iterator[Event]:
    known: dict[str, Event] = {}  # start_id -> its first event
    ready: set[str] = set()
    ended: set[str] = set()
    for line in lines:
        if line["event"] == _EARLIER:
            continue
        texts = {name: line[name] for name in _TEXTS if isinstance(line.get(name), str)}
        facts = {name: value for name, value in line.items() if name not in _TEXTS}
        event = Event(**{"time": "", **texts}, facts=facts)
        # The orphan reaper knows only which start it belongs to.
        first = known.setdefault(event.start_id, event) if event.start_id else event
        if not event.model:
            event = replace(event, model=first.model, task=first.task, engine=first.engine)
        # It may also be called for a supervisor that has just ended in an orderly way, and two
        # processes may find the same death.
        if event.event == SUPERVISOR_KILLED:
            if event.start_id in ended:
                continue
            if first.event == START and event.start_id not in ready and "phase" not in facts:
                event = replace(event, facts={**facts, "phase": UNKNOWN})
        if event.event == READY:
            ready.add(event.start_id)
            ended.discard(event.start_id)
        elif event.event in ENDS:
            ended.add(event.start_id)
        yield event


_TEXTS: Final = ("time", "event", "server", "start_id", "model", "task", "engine", "machine")


def _earlier_of(lines: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Counted, int, float]]:
    """Return what the last line ``earlier`` has counted."""
    last = [line for line in lines if line["event"] == _EARLIER][-1:]
    for each in last:
        counts = each.get("counts")
        for row in counts if isinstance(counts, list) else ():
            with suppress(ValueError, TypeError):
                *what, times, seconds = row
                counted = Counted(*map(str, what))
                yield counted, int(times), float(seconds)


def _tally(earlier: Iterable[tuple[Counted, int, float]], events: Iterable[Event]) -> Counts:
    counts = Counts()
    for row in earlier:
        counts.add(*row)
    for event in events:
        if event.task == GATEWAY:
            continue  # the counts are those of servers
        of = (event.model, event.task, event.engine)
        phase, phases = event.facts.get("phase"), event.facts.get("phases")
        where = phase if isinstance(phase, str) else ""
        counts.add(Counted(event.event, *of, where), 1, _number(event.facts.get("seconds")))
        if event.event == READY and isinstance(phases, dict):
            for name, seconds in phases.items():
                counts.add(Counted(PHASE, *of, name), 1, _number(seconds))
    return counts


def _number(value: Any) -> float:
    return round(float(value), _DIGITS) if isinstance(value, int | float) else 0.0

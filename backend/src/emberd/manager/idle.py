"""When nobody has used a server for long enough."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from emberd.settings import IDLE_TIMEOUT_S
from emberd.surface import Activity

_NAME: Final = "last-used"
_NEVER: Final = "never"
_TOUCH_EVERY_S: Final = 1.0
_LINE_MODE: Final = 0o600

_touched: dict[str, float] = {}


def touch(folder: str) -> bool:
    """Tell the keeper of ``folder`` that its server is in use; at most once a second.

    Returns:
        Whether a second had passed, and it was told.
    """
    now = time.monotonic()
    if now - _touched.get(folder, -_TOUCH_EVERY_S) < _TOUCH_EVERY_S:
        return False
    _touched[folder] = now
    # A server whose folder is gone is on its way out; the request itself will tell.
    with suppress(OSError):
        os.utime(Path(folder) / _NAME)
    return True


def begin(folder: Path, idle_timeout_s: float | None) -> None:
    """Begin the life of a server with the starter's idle time as the only one asked for."""
    descriptor = os.open(folder / _NAME, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _LINE_MODE)
    with os.fdopen(descriptor, "w") as file:
        file.write(_line(idle_timeout_s))


def ask(folder: Path, idle_timeout_s: float | None) -> None:
    """Ask for an idle time; the longest that any client asked for counts.

    Args:
        folder: The server's state folder.
        idle_timeout_s: Seconds; None for never.
    """
    asked = asked_for(folder)
    if asked is None or (idle_timeout_s is not None and idle_timeout_s <= asked):
        return
    # One short line at the end of the file: the kernel keeps lines of several clients apart.
    descriptor = os.open(folder / _NAME, os.O_WRONLY | os.O_APPEND | os.O_CREAT, _LINE_MODE)
    with os.fdopen(descriptor, "w") as file:
        file.write(_line(idle_timeout_s))


def asked_for(folder: Path) -> float | None:
    """Return the longest idle time that a client asked for, in seconds; None for never."""
    try:
        lines = (folder / _NAME).read_text().split()
    except OSError:
        lines = []
    if _NEVER in lines:
        return None
    # A file that is gone or garbled must not end a server before its time.
    return max(filter(None, map(_seconds, lines)), default=IDLE_TIMEOUT_S)


def _seconds(line: str) -> float | None:
    try:
        return float(line)
    except ValueError:
        return None


def _line(idle_timeout_s: float | None) -> str:
    return f"{_NEVER if idle_timeout_s is None else idle_timeout_s}\n"


class Idleness:
    """How long a server has not been used, on a monotonic clock.

    Use is a touch by a client, a change of the server's own counters, or a request in flight:
    a server may have clients that know nothing of emberd.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin to watch ``folder``; it counts as used now."""
        self._file = folder / _NAME
        self._clock = clock
        self._used_at_s = clock()
        self._touched_ns = self._mtime_ns()
        self._activity: Activity | None = None
        self._looked_at_s = clock()

    def must_look(self, asked_for_s: float | None, look_s: float) -> bool:
        """Return whether a reading is due: the last one is old, or would decide about the end.

        Args:
            asked_for_s: Idle time after which the server stops, in seconds; None for never.
            look_s: How old a reading may be, in seconds.
        """
        since_s = self._clock() - self._looked_at_s
        return since_s >= look_s or (asked_for_s is not None and self.seconds() >= asked_for_s)

    def observe(self, activity: Activity | None) -> None:
        """Take a reading of the server's counters; None when they could not be read."""
        self._looked_at_s = self._clock()
        touched_ns = self._mtime_ns()
        if touched_ns != self._touched_ns or self._is_use(activity):
            self._used_at_s = self._clock()
        self._touched_ns = touched_ns
        self._activity = activity or self._activity

    def seconds(self) -> float:
        """Return for how long nobody has used the server."""
        return self._clock() - self._used_at_s

    def _is_use(self, activity: Activity | None) -> bool:
        if activity is None:
            # Counters that were there and are not: the server is too busy to show them, or
            # wedged, which is not for this watch to judge.
            return self._activity is not None
        return activity.in_flight > 0 or activity != self._activity

    def _mtime_ns(self) -> int:
        try:
            return self._file.stat().st_mtime_ns
        except OSError:
            return 0

"""Decides when a server is idle: use by clients, and the idle timeouts that they requested.

A timeout is a number of seconds; ``math.inf`` means that the server never stops.
"""

from __future__ import annotations

import math
import os
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from emberd.errors import StateFolderError
from emberd.manager import paths
from emberd.probe import Activity
from emberd.settings import IDLE_TIMEOUT_S
from emberd.system import os_errors

_NAME: Final = "last-used"
_TOUCH_EVERY_S: Final = 1.0
_MAX_BYTES: Final = 64 * 1024  # of an intact file: a client adds a line only for a longer timeout
_READINGS: Final = 10  # of the counters within an idle timeout, at least

_touched: dict[str, float] = {}


def touch(folder: str) -> bool:
    """Tell the supervisor of ``folder`` that its server is in use; at most once a second.

    Returns:
        Whether a second had passed, and the supervisor was told.
    """
    now = time.monotonic()
    if now - _touched.get(folder, -_TOUCH_EVERY_S) < _TOUCH_EVERY_S:
        return False
    _touched[folder] = now
    # A server whose folder is gone is about to end; the request itself will fail.
    with suppress(OSError):
        os.utime(Path(folder) / _NAME, follow_symlinks=False)
    return True


def reset(folder: Path, idle_timeout_s: float) -> None:
    """Write the first idle timeout of a new server, in seconds."""
    paths.create_file(folder / _NAME, f"{idle_timeout_s}\n".encode())


def unused_s(folder: Path) -> float | None:
    """Return how long the server of ``folder`` has not been used; None if it has no such file.

    Use that its supervisor has not noticed yet counts too, if a client has reported it.
    """
    try:
        changed_s = (folder / _NAME).lstat().st_mtime
    except OSError:
        return None
    return max(0.0, time.time() - changed_s)


def left_s(idle_timeout_s: float | None, unused_s: float | None) -> float | None:
    """Return the time until a server stops unless it is used; None if one of them is not known."""
    if idle_timeout_s is None or unused_s is None:
        return None
    return max(0.0, idle_timeout_s - unused_s)


def request(folder: Path, idle_timeout_s: float) -> None:
    """Request an idle timeout, in seconds; the longest that any client requested is used.

    Raises:
        StateFolderError: The request cannot be written.
    """
    # Also written if the file is lost: the supervisor then restores the longest of all.
    if idle_timeout_s <= _longest(folder):
        return
    try:
        _append(folder, idle_timeout_s)
    except OSError as error:
        raise StateFolderError(
            f"The idle timeout of {folder.name} cannot be written to {folder / _NAME} "
            f"({error.strerror or error}). "
            f"{os_errors.advice(error) or 'Fix the cause, then try again.'}"
        ) from error


def requested_s(folder: Path) -> float:
    """Return the longest idle timeout that a client requested, in seconds."""
    # A lost or damaged file must not end a server early.
    return _longest(folder) or IDLE_TIMEOUT_S


def _longest(folder: Path) -> float:
    """Return the longest idle timeout in the file, in seconds; 0 if it contains none."""
    content = b""
    # A file that cannot be read now (disk, descriptor limit) does not end a server either.
    with suppress(StateFolderError):
        content = paths.read_file(folder / _NAME, truncate=True) or b""
    longest_s = 0.0
    for line in content.split():
        with suppress(ValueError):
            longest_s = max(longest_s, float(line))
    return longest_s


def _append(folder: Path, idle_timeout_s: float) -> None:
    file = folder / _NAME
    try:
        facts = file.lstat()
        is_usable = stat.S_ISREG(facts.st_mode) and facts.st_size < _MAX_BYTES
        if not (is_usable and os.access(file, os.R_OK | os.W_OK)):
            paths.remove(file)
    except FileNotFoundError:
        pass
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    # One write at the end of the file: the kernel keeps lines of several clients apart. It begins
    # with a line end, because a damaged file may end in the middle of a line.
    with open(os.open(file, flags, 0o600), "wb") as opened:
        opened.write(f"\n{idle_timeout_s}\n".encode())


class RequestedTimeout:
    """The longest requested idle timeout, which a supervisor remembers if the file is lost."""

    def __init__(self, folder: Path) -> None:
        """Read what was requested in ``folder`` so far."""
        self._folder = folder
        self._lock = threading.Lock()
        self._changes = paths.Changes(folder / _NAME)
        self._in_file_s = self._longest_s = _longest(folder)

    def seconds(self) -> float:
        """Return the longest idle timeout ever requested, in seconds."""
        with self._lock:
            self._read()
            return self._longest_s or IDLE_TIMEOUT_S

    def restore(self) -> None:
        """Write the longest idle timeout again if the file no longer contains it.

        Raises:
            OSError: It cannot be written.
        """
        with self._lock:
            self._read()
            if self._in_file_s < self._longest_s:
                _append(self._folder, self._longest_s)

    def _read(self) -> None:
        if self._changes.is_unchanged():
            return
        self._in_file_s = _longest(self._folder)
        self._longest_s = max(self._longest_s, self._in_file_s)
        if self._in_file_s:  # otherwise it may only be unreadable now
            self._changes.accept()


class IdleMonitor:
    """Measures how long a server has not been used, on a monotonic clock.

    Use is a touch by a client, a change of the server's own counters, or a request in flight: a
    server may also have clients that do not use emberd.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Start watching ``folder``; it counts as used now."""
        self._file = folder / _NAME
        self._clock = clock
        self._use()
        self._activity: Activity | None = None
        self._read_at_s = -math.inf

    def is_reading_due(self, idle_timeout_s: float, max_age_s: float) -> bool:
        """Return whether the counters must be read again.

        Each reading costs the server CPU time. Use between two readings counts from the second one,
        so the time between them delays the end of the server: at most a tenth of its idle timeout.
        """
        max_age_s = min(max_age_s, idle_timeout_s / _READINGS)
        return self._clock() - self._read_at_s >= max_age_s or self.seconds() >= idle_timeout_s

    def observe(self, activity: Activity | None) -> None:
        """Take a reading of the server's counters; None if they could not be read."""
        self._read_at_s = self._clock()
        if self._mtime_ns() != self._touched_ns or self._is_use(activity):
            self._use()
        self._activity = activity or self._activity

    def seconds(self) -> float:
        """Return for how long the server has not been used."""
        return self._clock() - self._used_at_s

    def _use(self) -> None:
        """Count it as used now, also for those who read the time of the file: ``unused_s``."""
        self._used_at_s = self._clock()
        with suppress(OSError):  # it is lost, and restored later
            os.utime(self._file, follow_symlinks=False)
        self._touched_ns = self._mtime_ns()

    def _is_use(self, activity: Activity | None) -> bool:
        if activity is None:
            # Counters that were available and are not: the server is too busy to show them, or
            # hung, which ``health`` decides.
            return self._activity is not None
        return activity.in_flight > 0 or activity != self._activity

    def _mtime_ns(self) -> int:
        try:
            return self._file.lstat().st_mtime_ns
        except OSError:
            return 0

"""Locks on files, between processes: the only implementation in emberd.

The kernel releases a lock when the last descriptor of the open file is closed, so a killed process
leaves no lock behind. The lock file itself is never deleted: deleting it would split the waiting
processes over two files.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from emberd.system import ownership

_POLL_S: Final = 0.02
_MODE: Final = 0o600
_MOST_BYTES: Final = 4096  # of a note


class LockHeldError(TimeoutError):
    """The lock is held by another process.

    Attributes:
        holder: What the holder wrote into the file, such as ``"process 4711"``; may be empty.
    """

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{path} is locked by {holder or 'an unknown process'}")
        self.holder = holder


@contextmanager
def held(
    path: str | os.PathLike[str],
    timeout_s: float,
    *,
    shared: bool = False,
    note: str = "",
    mode: int = _MODE,
) -> Iterator[int]:
    """Hold the lock on ``path`` for the duration of the block, and yield its descriptor.

    Args:
        path: The lock file; created if it is missing, in a folder that exists.
        timeout_s: How long to wait for the lock; 0 tries once.
        shared: Other shared holders are allowed.
        note: Human-readable text that is written into the file, and read by ``holder``; never
            used for the lock itself.
        mode: The mode of a file that is created; by default other users cannot open it.

    Raises:
        LockHeldError: Another process holds the lock.
        OSError: The file cannot be opened, is not a regular file, or its file system has no locks.
    """
    path = Path(path)
    descriptor = open_file(path, os.O_RDWR | os.O_CREAT, mode)
    try:
        deadline_s = time.monotonic() + timeout_s
        while not try_lock(descriptor, shared=shared):
            if time.monotonic() >= deadline_s:
                raise LockHeldError(path, holder(path))
            time.sleep(_POLL_S)
        if note:
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, note.encode(), 0)
        try:
            yield descriptor
        finally:
            # Closing is not enough: a process that was forked in between has a copy of the
            # descriptor and would keep the lock.
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def holder(path: str | os.PathLike[str]) -> str:
    """Return the note of the last holder; empty if there is none."""
    try:
        with os.fdopen(ownership.open_file(path), "rb") as file:
            return file.read(_MOST_BYTES).decode(errors="replace").strip()
    except OSError:
        return ""


def is_held(path: str | os.PathLike[str]) -> bool:
    """Return whether a process holds the lock now; False for a file that does not exist.

    The probe uses a shared lock: two exclusive probes would each report the other as a holder.
    """
    try:
        descriptor = open_file(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(descriptor, shared=True)
    finally:
        os.close(descriptor)


def open_file(path: str | os.PathLike[str], flags: int, mode: int = _MODE) -> int:
    """Open a lock file and return its descriptor.

    Args:
        path: The file; if its permissions were taken from this user, they are restored.
        flags: How to open it; ``os.O_RDONLY``, to probe, works on a read-only disk too.
        mode: Its mode if ``flags`` create it.

    Raises:
        OSError: It cannot be opened, or is not a regular file (``EINVAL``).
    """
    try:
        return ownership.open_file(path, flags, mode)
    except PermissionError:
        if not _is_own_file(path):
            raise
        os.chmod(path, mode)
        return ownership.open_file(path, flags)


def _is_own_file(path: str | os.PathLike[str]) -> bool:
    try:
        facts = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(facts.st_mode) and facts.st_uid == os.geteuid()


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Try once to lock an open file; return whether that succeeded.

    Raises:
        OSError: The file system has no locks.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True

"""Locks on files, between processes: the only implementation in emberd.

The kernel releases a lock when the last descriptor of the open file is closed, so a killed process
leaves no lock behind. The lock file itself is never deleted: deleting it would split the waiting
processes over two files.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_POLL_S: Final = 0.02
# The note is written into the file, so a link with its name is an error and not followed.
_FLAGS: Final = os.O_RDWR | os.O_NOFOLLOW


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
    path: str | os.PathLike[str], timeout_s: float, *, shared: bool = False, note: str = ""
) -> Iterator[None]:
    """Hold the lock on ``path`` for the duration of the block.

    Args:
        path: The lock file; created if it is missing, in a folder that exists.
        timeout_s: How long to wait for the lock; 0 tries once.
        shared: Other shared holders are allowed.
        note: Written into the file for people, and read by ``holder``; never used for the lock
            itself.

    Raises:
        LockHeldError: Another process holds the lock.
        OSError: The file cannot be opened, or its file system has no locks.
    """
    path = Path(path)
    descriptor = os.open(path, os.O_CREAT | _FLAGS, 0o600)
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
            yield
        finally:
            # Closing is not enough: a process that was forked meanwhile has a copy of the
            # descriptor and would keep the lock.
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def holder(path: str | os.PathLike[str]) -> str:
    """Return the note of the last holder; empty if there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def is_held(path: str | os.PathLike[str]) -> bool:
    """Return whether a process holds the lock now; False for a file that does not exist.

    The probe uses a shared lock: two exclusive probes would each report the other as a holder.
    """
    try:
        descriptor = os.open(path, _FLAGS)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(descriptor, shared=True)
    finally:
        os.close(descriptor)


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

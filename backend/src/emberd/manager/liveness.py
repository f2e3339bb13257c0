"""Proof of life: a flock that the supervisor holds for as long as it lives.

The kernel lets go of it when the last descriptor of the open file closes, however the process
ended, so there is no heartbeat and no pid to be believed. Readers probe with a *shared* lock:
two exclusive probes would each take the other for a living supervisor.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from emberd.errors import StateFolderError

_NAME: Final = "alive"
_PROBES_PASS_S: Final = 1.0
_RETRY_S: Final = 0.005

_open_descriptors: set[int] = set()
_forking = threading.Lock()
"""Held over a fork, and while a descriptor is opened or closed: no copy of one goes unnoticed."""


def path(folder: Path) -> Path:
    """Return the file whose lock is the proof of life of ``folder``."""
    return folder / _NAME


def take(folder: Path) -> int | None:
    """Take the liveness lock of ``folder``; return its descriptor, or None if it is held.

    The holder is the only one who may write the folder's record. Whoever calls this holds the
    start lock, so the only rivals are the probes of readers, which pass in microseconds.

    Raises:
        StateFolderError: The file system knows no flock.
    """
    descriptor = _open(folder)
    deadline = time.monotonic() + _PROBES_PASS_S
    while not _try_lock(descriptor, fcntl.LOCK_EX, folder):
        if time.monotonic() > deadline:
            release(descriptor)
            return None
        time.sleep(_RETRY_S)
    return descriptor


def is_held(folder: Path) -> bool:
    """Return whether somebody holds the proof of life of ``folder``.

    However many ask at once, none of them takes another for a holder.
    """
    try:
        descriptor = _open(folder, create=False)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(descriptor, fcntl.LOCK_SH, folder)
    finally:
        release(descriptor)


def release(descriptor: int) -> None:
    """Close a descriptor; the lock goes with the last copy of it, wherever that is."""
    with _forking:
        _open_descriptors.discard(descriptor)
        os.close(descriptor)


def is_same_file(descriptor: int, folder: Path) -> bool:
    """Return whether the folder still holds the very file that ``descriptor`` has locked."""
    try:
        there = path(folder).stat()
    except OSError:
        return False
    ours = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


@contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Hold the proof of life for a moment, to write a record that has no supervisor.

    Yields:
        Whether it was to be had.
    """
    descriptor = take(folder)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            release(descriptor)


def _open(folder: Path, *, create: bool = True) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    try:
        with _forking:
            descriptor = os.open(folder / _NAME, flags, 0o600)
            _open_descriptors.add(descriptor)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StateFolderError(
            f"{folder / _NAME} cannot be opened ({error.strerror}). "
            f"Set EMBERD_HOME to a folder that you may write to."
        ) from error
    return descriptor


def _try_lock(descriptor: int, kind: int, folder: Path) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise StateFolderError(
            f"{folder} is on a file system without working locks ({error.strerror}). "
            f"Set EMBERD_HOME to a folder on a local disk."
        ) from error
    return True


def _close_in_child() -> None:
    # A process that the application forks while a descriptor is open here shares its lock: it
    # would go on "living" for the supervisor, or block the next start, for as long as it runs.
    for descriptor in list(_open_descriptors):
        with suppress(OSError):
            os.close(descriptor)
    _open_descriptors.clear()
    _forking.release()


os.register_at_fork(
    before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_close_in_child
)

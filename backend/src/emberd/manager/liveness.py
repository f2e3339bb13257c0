"""The liveness lock: a flock that the supervisor holds for as long as it runs.

The kernel releases it when the last descriptor of the open file is closed, however the process
ended, so neither a heartbeat nor a pid is needed. Readers probe with a *shared* lock: two exclusive
probes would each take the other for a running supervisor.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from emberd.errors import StateFolderError
from emberd.system import file_lock, fork

_NAME: Final = "alive"
_PROBES_PASS_S: Final = 1.0
_RETRY_S: Final = 0.005


class _OpenDescriptors(fork.ForkAware):
    """The descriptors that this process has open; a forked child closes its copies.

    A child that kept one would share its lock: it would keep a dead supervisor "alive", or block
    the next start, for as long as it runs.
    """

    def __init__(self) -> None:
        # Held over a fork, and while a descriptor is opened or closed: no copy is missed.
        self.lock = threading.Lock()
        self.open: set[int] = set()
        fork.register(self)

    def before_fork(self) -> None:
        self.lock.acquire()

    def after_fork_in_parent(self) -> None:
        self.lock.release()

    def after_fork_in_child(self) -> None:
        for descriptor in self.open:
            with suppress(OSError):
                os.close(descriptor)
        self.open.clear()
        self.lock.release()


_DESCRIPTORS: Final = _OpenDescriptors()


def path(folder: Path) -> Path:
    """Return the liveness lock file of ``folder``."""
    return folder / _NAME


def take(folder: Path) -> int | None:
    """Take the liveness lock of ``folder``; return its descriptor, or None if it is held.

    Only the holder may write the folder's record. The caller holds the start lock, so it competes
    only with the probes of readers, which last microseconds.

    Raises:
        StateFolderError: The file system has no locks.
    """
    descriptor = _open(folder)
    deadline = time.monotonic() + _PROBES_PASS_S
    while not _try_lock(descriptor, folder, shared=False):
        if time.monotonic() > deadline:
            release(descriptor)
            return None
        time.sleep(_RETRY_S)
    return descriptor


def is_held(folder: Path) -> bool:
    """Return whether a process holds the liveness lock of ``folder``.

    Any number of callers may ask at once; none of them sees another as the holder.

    Raises:
        StateFolderError: The file cannot be opened, or its file system has no locks.
    """
    try:
        descriptor = _open(folder, create=False)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(descriptor, folder, shared=True)
    finally:
        release(descriptor)


def release(descriptor: int) -> None:
    """Close a descriptor; the kernel releases the lock with its last copy in any process."""
    with _DESCRIPTORS.lock:
        _DESCRIPTORS.open.discard(descriptor)
        os.close(descriptor)


def is_same_file(descriptor: int, folder: Path) -> bool:
    """Return whether the file in ``folder`` is still the one that ``descriptor`` has locked."""
    try:
        there = path(folder).stat()
    except OSError:
        return False
    return os.path.samestat(there, os.fstat(descriptor))


@contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Hold the liveness lock for a moment, to write a record that has no supervisor.

    Yields:
        Whether the lock was free; if not, it is not held.
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
        with _DESCRIPTORS.lock:
            descriptor = os.open(path(folder), flags, 0o600)
            _DESCRIPTORS.open.add(descriptor)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StateFolderError(
            f"{path(folder)} cannot be opened ({error.strerror}). "
            f"Set EMBERD_HOME to a folder that you may write to."
        ) from error
    return descriptor


def _try_lock(descriptor: int, folder: Path, *, shared: bool) -> bool:
    try:
        return file_lock.try_lock(descriptor, shared=shared)
    except OSError as error:
        raise StateFolderError(
            f"{folder} is on a file system without working locks ({error.strerror}). "
            f"Set EMBERD_HOME to a folder on a local disk."
        ) from error

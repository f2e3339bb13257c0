"""Locks between processes: the start lock, locks on GPUs, and the liveness lock.

A supervisor holds the liveness lock, a flock on the file ``alive``, for as long as it runs. The
kernel releases it when the last descriptor of the open file is closed, however the process ended,
so neither a heartbeat nor a pid is needed. Readers probe with a *shared* lock: two exclusive probes
would each take the other for a running supervisor.
"""

from __future__ import annotations

import os
import shlex
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from emberd.errors import LockTimeoutError, StateFolderError
from emberd.manager import paths
from emberd.system import file_lock, fork, os_errors

_PROBES_PASS_S: Final = 1.0
_RETRY_S: Final = 0.005


def start_lock(folder: Path, timeout_s: float) -> AbstractContextManager[None]:
    """Hold the start lock of ``folder``: at most one process decides and starts a server.

    Raises:
        LockTimeoutError: Another process held it for ``timeout_s`` seconds; the error names it.
        StateFolderError: The file system has no locks.
    """
    note = f"pid {os.getpid()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    return _all_held([folder / "lock"], timeout_s, note)


def gpu_locks(folder: Path, names: Sequence[str], timeout_s: float) -> AbstractContextManager[None]:
    """Hold the locks on ``names``, such as GPU UUIDs, from measuring until ready.

    Two servers that measured free memory at the same time would both take it. The locks are
    taken in the order of their names, so that two callers that want the same ones cannot block
    each other.

    Raises:
        LockTimeoutError: Another process held one of them for ``timeout_s`` seconds.
        StateFolderError: The file system has no locks.
    """
    return _all_held([folder / f"{name}.lock" for name in sorted(set(names))], timeout_s)


@contextmanager
def _all_held(paths: Sequence[Path], timeout_s: float, note: str = "") -> Iterator[None]:
    with ExitStack() as stack:
        for path in paths:
            try:
                stack.enter_context(file_lock.held(path, timeout_s, note=note))
            except file_lock.LockHeldError as error:
                raise LockTimeoutError(
                    f"Could not acquire the lock {path} within {timeout_s:g} s: it is held by "
                    f"{error.holder or 'an unknown process'}. Wait for that process, or end it if "
                    f"it hangs, then try again."
                ) from error
            except OSError as error:
                raise _unlockable(path, error) from error
        yield


def _is_other_kind(path: Path) -> bool:
    try:
        return not stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _unlockable(path: Path, error: OSError) -> StateFolderError:
    if _is_other_kind(path):
        # Not replaced here: two processes that did so at once could each lock another file.
        return StateFolderError(
            f"{path} is not a regular file. Run: rm -r {shlex.quote(os.fspath(path))}"
        )
    return StateFolderError(
        f"{path} cannot be locked ({error.strerror or error}). {os_errors.advice(error)} "
        f"EMBERD_HOME must be a folder on a local disk that you may write to."
    )


# ---------------------------------------------------------------- the liveness lock


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


def liveness_path(folder: Path) -> Path:
    """Return the liveness lock file of ``folder``."""
    return folder / "alive"


def take_liveness(folder: Path) -> int | None:
    """Take the liveness lock of ``folder``; return its descriptor, or None if it is held.

    Only the holder may write the folder's record. It competes with supervisors that end, and with
    the probes of readers, which last microseconds.

    Raises:
        StateFolderError: The file cannot be opened, or its file system has no locks.
    """
    try:
        descriptor = _open(folder, os.O_RDWR | os.O_CREAT)
    except FileNotFoundError:
        # Something else has its name, and no supervisor keeps running without a lock file.
        paths.remove(liveness_path(folder))
        descriptor = _open(folder, os.O_RDWR | os.O_CREAT)
    deadline = time.monotonic() + _PROBES_PASS_S
    while not _try_lock(descriptor, folder, shared=False):
        if time.monotonic() > deadline:
            release(descriptor)
            return None
        time.sleep(_RETRY_S)
    return descriptor


def is_alive(folder: Path) -> bool:
    """Return whether a process holds the liveness lock of ``folder``.

    Any number of callers may ask at once; none of them sees another as the holder.

    Raises:
        StateFolderError: The file cannot be opened, or its file system has no locks.
    """
    try:
        descriptor = _open(folder, os.O_RDONLY)
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
        return os.path.samestat(liveness_path(folder).stat(), os.fstat(descriptor))
    except OSError:
        return False


@contextmanager
def liveness_lock(folder: Path) -> Iterator[bool]:
    """Hold the liveness lock for a moment, to write a record that has no supervisor.

    Yields:
        Whether the lock was free; if not, it is not held.
    """
    descriptor = take_liveness(folder)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            release(descriptor)


def _open(folder: Path, flags: int) -> int:
    """Open the liveness lock file; raises ``FileNotFoundError`` if there is no regular file."""
    path = liveness_path(folder)
    try:
        with _DESCRIPTORS.lock:
            descriptor = file_lock.open_file(path, flags)
            _DESCRIPTORS.open.add(descriptor)
    except FileNotFoundError:
        raise
    except OSError as error:
        if _is_other_kind(path):
            raise FileNotFoundError(error.errno, "not a regular file", os.fspath(path)) from error
        raise StateFolderError(
            f"{path} cannot be opened ({error.strerror}). "
            f"{os_errors.advice(error) or 'Set EMBERD_HOME to a folder that you may write to.'}"
        ) from error
    return descriptor


def _try_lock(descriptor: int, folder: Path, *, shared: bool) -> bool:
    try:
        return file_lock.try_lock(descriptor, shared=shared)
    except OSError as error:
        raise _unlockable(liveness_path(folder), error) from error

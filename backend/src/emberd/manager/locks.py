"""Locks between processes: who may start a server, and who may take a GPU while it loads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from emberd.errors import LockTimeoutError, StateFolderError

if TYPE_CHECKING:
    from filelock import BaseFileLock

_POLL_S: Final = 0.02


@contextmanager
def start_lock(folder: Path, timeout_s: float) -> Iterator[None]:
    """Hold the start lock of ``folder``: at most one process decides and starts.

    Raises:
        LockTimeoutError: It was not to be had in ``timeout_s`` seconds; names the holder.
        StateFolderError: The file system knows no locks.
    """
    path = folder / "lock"
    with _acquired(path, timeout_s):
        # For people only: what holds is the lock, whatever the text says.
        with suppress(OSError):
            path.write_text(f"pid {os.getpid()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
        yield


@contextmanager
def claims(folder: Path, names: Sequence[str], timeout_s: float) -> Iterator[None]:
    """Hold the locks on ``names``, such as GPU UUIDs, from measuring until ready.

    Two servers that measure free memory at the same time would both take it. The locks are
    taken in the order of their names, so that two that want the same ones cannot block each
    other.

    Raises:
        LockTimeoutError: One was not to be had in ``timeout_s`` seconds.
    """
    with ExitStack() as stack:
        for name in sorted(set(names)):
            stack.enter_context(_acquired(folder / f"{name}.lock", timeout_s))
        yield


@contextmanager
def _acquired(path: Path, timeout_s: float) -> Iterator[None]:
    # Imported late: attaching to a running server takes no lock.
    from filelock import Timeout

    lock = _lock(path)
    try:
        lock.acquire(timeout=timeout_s, poll_interval=_POLL_S)
    except Timeout as error:
        raise LockTimeoutError(
            f"The lock {path} was not to be had in {timeout_s:g} s; it is held by "
            f"{_holder(path)}. Wait for that process, or end it if it hangs, then try again."
        ) from error
    except OSError as error:
        raise StateFolderError(
            f"{path} cannot be locked ({error.strerror or error}). "
            f"Set EMBERD_HOME to a folder on a local disk that you may write to."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _lock(path: Path) -> BaseFileLock:
    from filelock import FileLock

    # A soft lock is a file that a killed process leaves behind; deleting the file of a hard one
    # splits those who wait for it over two inodes.
    return FileLock(path, fallback_to_soft=False, preserve_lock_file=True, mode=0o600)


def _holder(path: Path) -> str:
    try:
        return path.read_text(errors="replace") or "a process that does not give its name"
    except OSError:
        return "a process that cannot be named"

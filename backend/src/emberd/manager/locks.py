"""Locks between processes: the start lock, and locks on GPUs while a server loads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from emberd.errors import LockTimeoutError, StateFolderError
from emberd.system import file_lock


@contextmanager
def start_lock(folder: Path, timeout_s: float) -> Iterator[None]:
    """Hold the start lock of ``folder``: at most one process decides and starts a server.

    Raises:
        LockTimeoutError: Another process held it for ``timeout_s`` seconds; the error names it.
        StateFolderError: The file system has no locks.
    """
    note = f"pid {os.getpid()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    with ExitStack() as stack:
        _acquire(stack, folder / "lock", timeout_s, note)
        yield


@contextmanager
def gpu_locks(folder: Path, names: Sequence[str], timeout_s: float) -> Iterator[None]:
    """Hold the locks on ``names``, such as GPU UUIDs, from measuring until ready.

    Two servers that measured free memory at the same time would both take it. The locks are
    taken in the order of their names, so that two callers that want the same ones cannot block
    each other.

    Raises:
        LockTimeoutError: Another process held one of them for ``timeout_s`` seconds.
        StateFolderError: The file system has no locks.
    """
    with ExitStack() as stack:
        for name in sorted(set(names)):
            _acquire(stack, folder / f"{name}.lock", timeout_s)
        yield


def _acquire(stack: ExitStack, path: Path, timeout_s: float, note: str = "") -> None:
    try:
        stack.enter_context(file_lock.held(path, timeout_s, note=note))
    except file_lock.LockHeldError as error:
        raise LockTimeoutError(
            f"Could not acquire the lock {path} within {timeout_s:g} s: it is held by "
            f"{error.holder or 'an unknown process'}. Wait for that process, or end it if it "
            f"hangs, then try again."
        ) from error
    except OSError as error:
        raise StateFolderError(
            f"{path} cannot be locked ({error.strerror or error}). "
            f"Set EMBERD_HOME to a folder on a local disk that you may write to."
        ) from error

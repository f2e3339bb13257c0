"""Who may replace the cache's file: a lock beside it, shared by its users.

Each use of the file holds the lock shared, and whoever makes or replaces the file holds it alone.
So nobody has a transaction open in a file that is being moved away, and of two that want to heal
it, the second finds it healed. The kernel lets go of the lock of a process that was killed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

WAIT_S: Final = 10.0
_RETRY_S: Final = 0.005
_PRIVATE: Final = 0o600


@contextmanager
def shared(path: str) -> Iterator[None]:
    """Hold the lock with others, in this block.

    Raises:
        OSError: It cannot be made, or whoever holds it alone did not let go.
    """
    with _held(path, alone=False):
        yield


@contextmanager
def alone(path: str) -> Iterator[None]:
    """Hold the lock alone, in this block.

    Raises:
        OSError: It cannot be made, or others did not let go of it.
    """
    with _held(path, alone=True):
        yield


@contextmanager
def _held(path: str, *, alone: bool) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE)
    try:
        _lock(descriptor, path, alone=alone)
        yield
    finally:
        os.close(descriptor)


if sys.platform == "win32":

    def _lock(descriptor: int, path: str, *, alone: bool) -> None:
        """Do nothing: Windows itself lets nobody move a file that is open."""

else:
    import fcntl

    def _lock(descriptor: int, path: str, *, alone: bool) -> None:
        kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{path} was locked for {WAIT_S:.0f} s") from error
                time.sleep(_RETRY_S)
            else:
                return

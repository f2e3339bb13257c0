"""A bound on a whole exchange with a server, headers and all, for threads.

A timeout of a socket is one of a single read: a server that drips a byte a second never runs into
it. So each read is given no more than what is left of its thread's deadline.
"""

from __future__ import annotations

import functools
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from emberd.client.pieces import PIECE_BYTES

_THREAD: Final = threading.local()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Let the reads of this thread end after ``seconds`` altogether."""
    _THREAD.end = time.monotonic() + seconds
    try:
        yield
    finally:
        _THREAD.end = None


def left_s() -> float | None:
    """Return the seconds that this thread has left; None where it has no deadline.

    Raises:
        TimeoutError: There are none.
    """
    end = getattr(_THREAD, "end", None)
    if end is None:
        return None
    left: float = end - time.monotonic()
    if left <= 0:
        raise TimeoutError("the answer came too slowly")
    return left


def bind(stream: Any) -> None:
    """Have ``stream``, a network stream of httpcore's, keep to deadlines and read large pieces."""
    stream.read = functools.partial(_read, weakref.ref(stream))


def _read(of: weakref.ref[Any], max_bytes: int, timeout: float | None = None) -> Any:
    # By a weak reference: the stream holds this function, and is to be freed without a collection.
    stream: Any = of()
    left = left_s()
    if left is not None:
        timeout = left if timeout is None else min(timeout, left)
    return type(stream).read(stream, max(max_bytes, PIECE_BYTES), timeout)

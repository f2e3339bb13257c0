"""Work of calls on an event loop, done so that other tasks run in between: in slices, or a thread.

Work is written once, as a generator that yields between steps of about a millisecond at most.
Threads do all steps at once. On an event loop, what takes no longer than ``FIRST_S`` is done at
once, so that small calls are served in their order. Of all larger work, one slice is done in each
turn.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from typing import Final, TypeVar

from emberd.client.limits import LoopLocal
from emberd.system import background

T = TypeVar("T")

Steps = Generator[None, None, T]

FIRST_S: Final = 0.001
SLICE_S: Final = 0.005


def finish(steps: Steps[T]) -> T:
    """Do all steps at once, and return their result."""
    try:
        while True:
            next(steps)
    except StopIteration as end:
        result: T = end.value
        return result


async def in_slices(steps: Steps[T]) -> T:
    """Do the steps, and let other tasks of the event loop run in between; return their result."""
    try:
        _slice(steps, FIRST_S)
        while True:
            async with _LARGE.get():
                await asyncio.sleep(0)
                _slice(steps, SLICE_S)
    except StopIteration as end:
        result: T = end.value
        return result


def _slice(steps: Steps[T], seconds: float) -> None:
    """Do steps for so long, and at least one.

    Raises:
        StopIteration: The last one is done.
    """
    end_s = time.monotonic() + seconds
    next(steps)
    while time.monotonic() < end_s:
        next(steps)


async def in_thread(call: Callable[[], T], name: str) -> T:
    """Return what ``call`` returns, run by ``background.run``; cancelling ends only the wait.

    Not in the executor of the event loop: its threads are the application's, which may use them
    up, and the end of ``asyncio.run`` would wait for them.
    """
    return await asyncio.wrap_future(background.run(call, name))


_LARGE: Final[LoopLocal[asyncio.Lock]] = LoopLocal(asyncio.Lock)

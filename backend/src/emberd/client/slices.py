"""Work of calls on an event loop, done so that other tasks run in between: in slices, or a thread.

Work is written once, as a generator that yields between steps of about a millisecond at most.
Threads do all steps at once. On an event loop, all calls together use up to ``SLICE_S`` of each
turn of the loop: hundreds of small pieces would block it as much as a large one.
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
    turn = _TURNS.get()
    try:
        while turn.has_time():
            next(steps)
        while True:
            async with turn.lock:  # first come, first served; the rest of a large job queues again
                if not turn.has_time():
                    await asyncio.sleep(0)
                next(steps)
                while turn.has_time():
                    next(steps)
    except StopIteration as end:
        result: T = end.value
        return result


async def in_thread(call: Callable[[], T], name: str) -> T:
    """Return what ``call`` returns, run by ``background.run``; cancelling ends only the wait.

    Not in the executor of the event loop: its threads are the application's, which may use them
    up, and the end of ``asyncio.run`` would wait for them.
    """
    return await asyncio.wrap_future(background.run(call, name))


class _Turn:
    """The present turn of a loop, and how long it may be used for work in slices."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self._end_s: float | None = None

    def has_time(self) -> bool:
        """Return whether one more step may be done in this turn; the first one always may."""
        if self._end_s is None:
            self._end_s = time.monotonic() + SLICE_S
            asyncio.get_running_loop().call_soon(self._begin)
            return True
        return time.monotonic() < self._end_s

    def _begin(self) -> None:
        self._end_s = None


_TURNS: Final[LoopLocal[_Turn]] = LoopLocal(_Turn)

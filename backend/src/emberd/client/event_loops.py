"""What async calls need of an event loop: storage for each loop, and turns for its other tasks.

Work is written once, as a generator that yields between steps of about a millisecond at most.
Threads do all steps at once. On an event loop, what takes no longer than ``FIRST_S`` is done at
once, so that small calls are served in their order. Of all larger work, one slice is done in each
turn. What waits for files or locks is done in a thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Final, Generic, TypeVar
from weakref import WeakKeyDictionary

from emberd.system import background, fork

# The functions that need it import it: a supervisor has no event loop, and asyncio would be about
# a tenth of what it imports.
if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

Steps = Generator[None, None, T]

FIRST_S: Final = 0.001
SLICE_S: Final = 0.005


class LoopLocal(fork.ForkAware, Generic[T]):
    """One ``T`` for each event loop: locks and limits of tasks belong to one loop.

    Args:
        make: Makes one.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._of_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, T] = WeakKeyDictionary()
        fork.register(self)

    def get(self) -> T:
        """Return that of the running loop, made at first use."""
        import asyncio

        loop = asyncio.get_running_loop()
        with self._lock:
            # What was used in a loop may refer to it, and so keep its own weak key alive.
            for other in [other for other in self._of_loop if other.is_closed()]:
                del self._of_loop[other]
            if loop not in self._of_loop:
                self._of_loop[loop] = self._make()
            return self._of_loop[loop]

    def after_fork_in_child(self) -> None:
        """Forget all: no loop of the parent runs in the child."""
        fork.keep_inherited(self._of_loop)
        self._of_loop = WeakKeyDictionary()
        self._lock = threading.Lock()


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
    import asyncio

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
    import asyncio

    return await asyncio.wrap_future(background.run(call, name))


def _lock() -> asyncio.Lock:
    import asyncio

    return asyncio.Lock()


_LARGE: Final[LoopLocal[asyncio.Lock]] = LoopLocal(_lock)

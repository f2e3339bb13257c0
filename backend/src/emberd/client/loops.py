"""Things of which each running event loop has its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from emberd.system import fork
from emberd.system.fork import ForkAware

T = TypeVar("T")


class PerLoop(ForkAware, Generic[T]):
    """One ``T`` for each event loop: a connection or a semaphore of one loop dies with it.

    Args:
        make: Makes one.
        leave: Called with each in a forked child, before it is forgotten there.
    """

    def __init__(self, make: Callable[[], T], leave: Callable[[T], None] | None = None) -> None:
        self._make = make
        self._leave = leave
        self._lock = threading.Lock()
        self._things: WeakKeyDictionary[asyncio.AbstractEventLoop, T] = WeakKeyDictionary()
        fork.register(self)

    def get(self) -> T:
        """Return the running loop's own, made when it has none yet."""
        loop = asyncio.get_running_loop()
        with self._lock:
            # What was used in a loop may refer to it, and so keep its own weak key alive.
            for other in [other for other in self._things if other.is_closed()]:
                del self._things[other]
            if loop not in self._things:
                self._things[loop] = self._make()
            return self._things[loop]

    def pop(self) -> T | None:
        """Remove and return the running loop's own."""
        with self._lock:
            return self._things.pop(asyncio.get_running_loop(), None)

    def after_fork_in_child(self) -> None:
        """Forget all: no loop of the parent runs in the child."""
        if self._leave is not None:
            for thing in list(self._things.values()):
                self._leave(thing)
        fork.keep_inherited(self._things)
        self._things = WeakKeyDictionary()
        self._lock = threading.Lock()

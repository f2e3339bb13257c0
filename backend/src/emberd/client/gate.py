"""Gates that let many in together, or one alone: of one event loop, and of threads.

Who wants to be alone waits until all are gone, and lets nobody in meanwhile.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from emberd.system import fork
from emberd.system.fork import ForkAware


class TaskGate:
    """The gate of one event loop."""

    def __init__(self) -> None:
        self._door = asyncio.Lock()
        self._empty = asyncio.Event()
        self._empty.set()
        self._inside = 0

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        """Be inside with others."""
        async with self._door:
            self._inside += 1
            self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if self._inside == 0:
                self._empty.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Be inside with nobody else."""
        async with self._door:
            await self._empty.wait()
            yield


class ThreadGate(ForkAware):
    """The gate of threads. A call that is over is let out, whatever its threads still do."""

    def __init__(self) -> None:
        self.after_fork_in_child()
        fork.register(self)

    def after_fork_in_child(self) -> None:
        """Start anew: the threads that were inside do not exist in the child."""
        self._changed = threading.Condition()
        self._inside: Counter[object] = Counter()
        self._alone: object = None

    @contextmanager
    def together(self, call: object) -> Iterator[None]:
        """Be inside with others, for ``call``."""
        with self._changed:
            self._changed.wait_for(lambda: self._alone is None)
            self._inside[call] += 1
        try:
            yield
        finally:
            with self._changed:
                if self._inside[call] > 1:
                    self._inside[call] -= 1
                else:
                    del self._inside[call]
                self._changed.notify_all()

    @contextmanager
    def alone(self, call: object) -> Iterator[None]:
        """Be inside with nobody else, for ``call``."""
        with self._changed:
            self._changed.wait_for(lambda: self._alone is None)
            self._alone = call
        try:
            with self._changed:
                self._changed.wait_for(lambda: not self._inside)
            yield
        finally:
            self._leave_alone(call)

    def abandon(self, call: object) -> None:
        """Let everything of ``call`` out."""
        with self._changed:
            del self._inside[call]
        self._leave_alone(call)

    def _leave_alone(self, call: object) -> None:
        with self._changed:
            if self._alone is call:
                self._alone = None
            self._changed.notify_all()

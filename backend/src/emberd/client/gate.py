"""Gates that let many in together, or one alone: of one event loop, and of threads.

Who wants to be alone waits until all are gone, and lets nobody in meanwhile.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from emberd.client import fork


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


class ThreadGate:
    """The gate of threads."""

    def __init__(self) -> None:
        self.reset_after_fork()
        fork.register(self)

    def reset_after_fork(self) -> None:
        """Start anew: the threads that were inside do not exist in the child."""
        self._door = threading.Lock()
        self._empty = threading.Condition()
        self._inside = 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """Be inside with others."""
        with self._door, self._empty:
            self._inside += 1
        try:
            yield
        finally:
            with self._empty:
                self._inside -= 1
                self._empty.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be inside with nobody else."""
        with self._door:
            with self._empty:
                self._empty.wait_for(lambda: self._inside == 0)
            yield

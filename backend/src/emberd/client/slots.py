"""How many requests are in flight at once, over all clients of the process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from emberd.client import fork
from emberd.client.loops import PerLoop


class AbandonedError(Exception):
    """The call that wanted the slot has ended; nobody waits for this request any more."""


class Slots:
    """Slots of the whole process, for threads."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.taken = 0
        fork.register(self)

    def reset_after_fork(self) -> None:
        """Start anew: the threads that held slots do not exist in the child."""
        self.changed = threading.Condition()
        self.taken = 0


class Lease:
    """The slots of one call, which can be given back all at once.

    A call that is interrupted leaves requests behind that only their timeout ends; they must not
    hold up the next call for so long.
    """

    def __init__(self, slots: Slots, limit: int) -> None:
        self._slots = slots
        self._limit = limit
        self._held = 0
        self._abandoned = False

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold a slot, waiting for it while the process has ``limit`` requests in flight.

        Raises:
            AbandonedError: ``abandon`` was called.
        """
        self._enter()
        try:
            yield
        finally:
            self._leave()

    def abandon(self) -> None:
        """Give back what is held, and let nobody wait any more."""
        with self._slots.changed:
            self._abandoned = True
            self._slots.taken -= self._held
            self._held = 0
            self._slots.changed.notify_all()

    def _enter(self) -> None:
        with self._slots.changed:
            self._slots.changed.wait_for(lambda: self._abandoned or self._slots.taken < self._limit)
            if self._abandoned:
                raise AbandonedError
            self._slots.taken += 1
            self._held += 1

    def _leave(self) -> None:
        with self._slots.changed:
            if not self._abandoned:
                self._slots.taken -= 1
                self._held -= 1
            self._slots.changed.notify_all()


PROCESS_SLOTS: Final = Slots()
_LOOP_SLOTS: Final[PerLoop[dict[int, asyncio.Semaphore]]] = PerLoop(dict)


def loop_slots(limit: int) -> asyncio.Semaphore:
    """Return the slots of the running loop, shared by all its clients of the same limit."""
    of_loop = _LOOP_SLOTS.get()
    return of_loop.setdefault(limit, asyncio.Semaphore(limit))

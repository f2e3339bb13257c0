"""How many requests are in flight at once, over all clients of the process."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from emberd.client.loops import PerLoop
from emberd.system import fork
from emberd.system.fork import ForkAware


class AbandonedError(Exception):
    """The call that wanted the slot has ended; nobody waits for this request any more."""


class Slots(ForkAware):
    """Slots of the whole process, for threads.

    Each limit bounds those who brought it, and the largest bounds all. Who waits longest goes
    first, but not for a slot that its limit forbids: so neither a small limit beside a large one
    nor a large one beside a small one ever starves.
    """

    def __init__(self) -> None:
        self.after_fork_in_child()
        fork.register(self)

    @property
    def taken(self) -> int:
        """How many are held."""
        return self._held.total()

    def after_fork_in_child(self) -> None:
        """Start anew: the threads that held slots do not exist in the child."""
        self.changed = threading.Condition()
        self._held: Counter[int] = Counter()
        self._waiting: list[_Ticket] = []

    def take(self, limit: int, is_abandoned: Callable[[], bool]) -> bool:
        """Wait for a slot and hold it; False when it is wanted no more. ``changed`` is held."""
        ticket = _Ticket(limit)
        self._waiting.append(ticket)
        try:
            self.changed.wait_for(lambda: is_abandoned() or self._next() is ticket)
            if is_abandoned():
                return False
            self._held[limit] += 1
            return True
        finally:
            self._waiting.remove(ticket)
            self.changed.notify_all()

    def give_back(self, limit: int, count: int) -> None:
        """Give back ``count`` slots. ``changed`` is held."""
        # In a forked child, what the parent held may be given back and was never held.
        self._held[limit] = max(0, self._held[limit] - count)
        self.changed.notify_all()

    def _next(self) -> _Ticket | None:
        limits = [limit for limit, count in self._held.items() if count]
        if self.taken >= max([*limits, *(ticket.limit for ticket in self._waiting)]):
            return None
        free = (ticket for ticket in self._waiting if self._held[ticket.limit] < ticket.limit)
        return next(free, None)


@dataclass(frozen=True, slots=True, eq=False)
class _Ticket:
    """The place of one who waits."""

    limit: int


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
    def slot(self, is_unwanted: Callable[[], bool] = lambda: False) -> Iterator[bool]:
        """Hold a slot, waiting for it while ``limit`` requests of this limit are in flight.

        Args:
            is_unwanted: Asked while there is none: whether none is wanted any more.

        Yields:
            Whether there is one.

        Raises:
            AbandonedError: ``abandon`` was called.
        """
        if not self._enter(is_unwanted):
            yield False
            return
        try:
            yield True
        finally:
            self._leave()

    def look_again(self) -> None:
        """Have all who wait for a slot look whether they want it still."""
        with self._slots.changed:
            self._slots.changed.notify_all()

    def abandon(self) -> None:
        """Give back what is held, and let nobody wait any more."""
        with self._slots.changed:
            self._abandoned = True
            self._slots.give_back(self._limit, self._held)
            self._held = 0

    def _enter(self, is_unwanted: Callable[[], bool]) -> bool:
        with self._slots.changed:
            if self._slots.take(self._limit, lambda: self._abandoned or is_unwanted()):
                self._held += 1
                return True
            if self._abandoned:
                raise AbandonedError
            return False

    def _leave(self) -> None:
        with self._slots.changed:
            if not self._abandoned:
                self._slots.give_back(self._limit, 1)
                self._held -= 1


PROCESS_SLOTS: Final = Slots()
_LOOP_SLOTS: Final[PerLoop[dict[int, asyncio.Semaphore]]] = PerLoop(dict)


def loop_slots(limit: int) -> asyncio.Semaphore:
    """Return the slots of the running loop, shared by all its clients of the same limit."""
    of_loop = _LOOP_SLOTS.get()
    return of_loop.setdefault(limit, asyncio.Semaphore(limit))

"""Bounds on requests in flight.

All clients of the process (threads) or of the event loop (tasks) that have the same
``max_concurrency`` share that many requests in flight; the largest one bounds all together. A
request of which the server may have died is sent *exclusively*: nothing else of its client is in
flight with it, or that would be suspected too.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, cast

from emberd.client.event_loops import LoopLocal
from emberd.system import fork
from emberd.system.bounded_http import Exchange


class CallEndedError(Exception):
    """The call of a request has ended; its result is not needed any more."""


@dataclass(slots=True, eq=False)
class Slot:
    """The right to have one request in flight, once it is granted.

    Attributes:
        owner: What granted it.
        limit: How many requests of this limit may be in flight.
        group: The client that sends.
        exclusive: Nothing else of the group may be in flight.
        granted: Called when the slot is granted.
        exchange: The request that a thread sends in it.
    """

    owner: CallSlots | TaskLimiter
    limit: int
    group: object
    exclusive: bool
    granted: Callable[[], None]
    exchange: Exchange | None = None

    def release(self) -> None:
        """Let another request be sent; does nothing the second time."""
        self.owner.release(self)


class _SlotQueue:
    """The rules, without locks: who holds a slot, and who is next.

    Each limit bounds those who use it, and the largest bounds all. The oldest waiter is next,
    unless its limit or an exclusive request holds it back; then the one after it. So neither a
    small limit beside a large one nor a large one beside a small one ever starves, and an exclusive
    request waits only for what is in flight.
    """

    def __init__(self) -> None:
        self.held: set[Slot] = set()
        self.waiting: list[Slot] = []  # oldest first

    def add(self, slot: Slot) -> None:
        self.waiting.append(slot)
        self._grant()

    def release(self, *slots: Slot) -> None:
        """Release slots, or stop waiting for them; each may be gone already."""
        for slot in slots:
            self.held.discard(slot)
            if slot in self.waiting:
                self.waiting.remove(slot)
        self._grant()

    def _grant(self) -> None:
        while self.waiting and (slot := self._next()) is not None:
            self.waiting.remove(slot)
            self.held.add(slot)
            slot.granted()

    def _next(self) -> Slot | None:
        counts: Counter[int] = Counter()
        in_flight, blocked = set[object](), set[object]()
        for slot in self.held:
            counts[slot.limit] += 1
            (blocked if slot.exclusive else in_flight).add(slot.group)
        if len(self.held) >= max([*counts, *[slot.limit for slot in self.waiting]]):
            return None
        for slot in self.waiting:
            may_send = slot.group not in blocked and counts[slot.limit] < slot.limit
            if may_send and not (slot.exclusive and slot.group in in_flight):
                return slot
            if slot.exclusive:
                blocked.add(slot.group)
        return None


class ConcurrencyLimiter(fork.ForkAware):
    """Bounds the requests of all threads of the process."""

    def __init__(self) -> None:
        self.after_fork_in_child()
        fork.register(self)

    def after_fork_in_child(self) -> None:
        """Start empty: the threads that held slots do not exist in the child."""
        self.changed = threading.Condition()
        self.queue = _SlotQueue()


@dataclass(slots=True, eq=False)
class CallSlots:
    """The slots of one call, from any of its threads, which can be released all at once.

    A call that is interrupted ends its requests: the server may work on them for long, and they
    would delay the next call.

    Attributes:
        limiter: Whose slots they are.
        limit: How many requests of this limit may be in flight.
        group: The client that makes the call; its exclusive requests exclude the others.
    """

    limiter: ConcurrencyLimiter
    limit: int
    group: object = None
    _has_ended: bool = field(default=False, init=False)

    def acquire(self, *, exclusive: bool = False) -> Slot:
        """Wait for a slot and return it.

        Args:
            exclusive: Nothing else of the group may be in flight with it.

        Raises:
            CallEndedError: ``abandon`` was called.
        """
        return cast("Slot", self.acquire_unless(lambda: False, exclusive=exclusive))

    def acquire_unless(
        self, is_unwanted: Callable[[], bool], *, exclusive: bool = False
    ) -> Slot | None:
        """Do as ``acquire``, but return None once the slot is not wanted any more.

        Args:
            is_unwanted: Checked while waiting; ``recheck`` has it checked again.
            exclusive: As for ``acquire``.
        """
        changed = self.limiter.changed
        slot = Slot(self, self.limit, self.group, exclusive, changed.notify_all)
        with changed:
            slots = self.limiter.queue
            is_granted = False
            slots.add(slot)
            try:
                while slot not in slots.held and not self._has_ended and not is_unwanted():
                    changed.wait()
                is_granted = not self._has_ended and not is_unwanted()
            finally:
                if not is_granted:
                    slots.release(slot)
        self.check()
        return slot if is_granted else None

    def release(self, slot: Slot) -> None:
        """Release a slot of this call; it may have been released before."""
        with self.limiter.changed:
            self.limiter.queue.release(slot)

    def begin(self, slot: Slot, seconds: float) -> Exchange:
        """Return the exchange of a request that is about to be sent in ``slot``.

        Raises:
            CallEndedError: ``abandon`` was called.
        """
        with self.limiter.changed:
            self.check()
            slot.exchange = Exchange(seconds)
            return slot.exchange

    def check(self) -> None:
        """Raise if ``abandon`` was called.

        Raises:
            CallEndedError: It was.
        """
        if self._has_ended:
            raise CallEndedError

    def recheck(self) -> None:
        """Have the threads that wait for a slot check whether it is still wanted."""
        with self.limiter.changed:
            self.limiter.changed.notify_all()

    def abandon(self) -> None:
        """Release all slots, end their requests, and the waiting with ``CallEndedError``."""
        with self.limiter.changed:
            self._has_ended = True
            mine = [slot for slot in self.limiter.queue.held if slot.owner is self]
            self.limiter.queue.release(*mine)
            self.limiter.changed.notify_all()
        for slot in mine:
            if slot.exchange is not None:
                slot.exchange.cancel()

    def sleep(self, seconds: float) -> None:
        """Wait between two tries of a request.

        Raises:
            CallEndedError: ``abandon`` was called.
        """
        with self.limiter.changed:
            if self.limiter.changed.wait_for(lambda: self._has_ended, seconds):
                raise CallEndedError


PROCESS_LIMITER: Final = ConcurrencyLimiter()


class TaskLimiter(_SlotQueue):
    """Bounds the requests of all tasks of one event loop."""

    async def acquire(self, limit: int, group: object, *, exclusive: bool = False) -> Slot:
        """Wait for a slot and return it; see ``Slot``."""
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def grant() -> None:
            if not granted.done():
                granted.set_result(None)

        slot = Slot(self, limit, group, exclusive, grant)
        try:
            self.add(slot)
            await granted
        except BaseException:
            self.release(slot)
            raise
        return slot


LOOP_LIMITERS: Final[LoopLocal[TaskLimiter]] = LoopLocal(TaskLimiter)

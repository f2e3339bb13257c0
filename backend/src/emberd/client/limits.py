"""Bounds on requests in flight, worker threads, and storage per event loop.

A client may have ``max_concurrency`` requests in flight, over all clients of the process (threads)
or of the event loop (tasks). A request of which the server may have died is sent *exclusively*:
nothing else of its client is in flight with it, or that would be suspected too.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar
from weakref import WeakKeyDictionary

from emberd.system import background, fork
from emberd.system.fork import ForkAware

T = TypeVar("T")
W = TypeVar("W")
R = TypeVar("R")


class CallEndedError(Exception):
    """The call that a request belongs to has ended; no one waits for the request any more."""


# ---------------------------------------------------------------- who may send


@dataclass(slots=True, eq=False)
class Slot:
    """The right to have one request in flight, once it is granted.

    Attributes:
        owner: What granted it.
        limit: How many requests of this limit may be in flight.
        group: The client that sends.
        exclusive: Nothing else of the group may be in flight.
        granted: Called when the slot is granted.
    """

    owner: CallSlots | TaskLimiter
    limit: int
    group: object
    exclusive: bool
    granted: Callable[[], None]

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

    def remove(self, *slots: Slot) -> None:
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


class ConcurrencyLimiter(ForkAware):
    """Bounds the requests of all threads of the process."""

    def __init__(self) -> None:
        self.after_fork_in_child()
        fork.register(self)

    def after_fork_in_child(self) -> None:
        """Start empty: the threads that held slots do not exist in the child."""
        self.changed = threading.Condition()
        self.queue = _SlotQueue()

    @property
    def in_flight(self) -> int:
        """How many slots are held."""
        return len(self.queue.held)


class CallSlots:
    """The slots of one call, from any of its threads, which can be released all at once.

    A call that is interrupted leaves requests behind that only their timeout ends; they must not
    delay the next call for that long.

    Args:
        limiter: Whose slots they are.
        limit: How many requests of this limit may be in flight.
        group: The client that makes the call; its exclusive requests exclude the others.
    """

    def __init__(self, limiter: ConcurrencyLimiter, limit: int, group: object = None) -> None:
        self._limiter = limiter
        self._limit = limit
        self._group = group
        self._has_ended = False

    def acquire(self, *, exclusive: bool = False) -> Slot:
        """Wait for a slot and return it.

        Args:
            exclusive: Nothing else of the group may be in flight with it.

        Raises:
            CallEndedError: ``abandon`` was called.
        """
        slot = Slot(self, self._limit, self._group, exclusive, self._limiter.changed.notify_all)
        self._wait(slot, lambda: False)
        return slot

    def acquire_unless(self, is_unwanted: Callable[[], bool]) -> Slot | None:
        """Do as ``acquire``, but return None once the slot is not wanted any more.

        Args:
            is_unwanted: Checked while waiting; ``recheck`` has it checked again.
        """
        slot = Slot(self, self._limit, self._group, False, self._limiter.changed.notify_all)
        return slot if self._wait(slot, is_unwanted) else None

    def _wait(self, slot: Slot, is_unwanted: Callable[[], bool]) -> bool:
        """Wait for a slot; return whether it is granted and still wanted."""
        with self._limiter.changed:
            slots = self._limiter.queue
            is_granted = False
            slots.add(slot)
            try:
                while slot not in slots.held and not self._has_ended and not is_unwanted():
                    self._limiter.changed.wait()
                is_granted = not self._has_ended and not is_unwanted()
            finally:
                if not is_granted:
                    slots.remove(slot)
        if self._has_ended:
            raise CallEndedError
        return is_granted

    def release(self, slot: Slot) -> None:
        """Release a slot of this call; it may have been released before."""
        with self._limiter.changed:
            self._limiter.queue.remove(slot)

    def recheck(self) -> None:
        """Have the threads that wait for a slot check whether it is still wanted."""
        with self._limiter.changed:
            self._limiter.changed.notify_all()

    def abandon(self) -> None:
        """Release all slots, and end the waiting for others with ``CallEndedError``."""
        with self._limiter.changed:
            self._has_ended = True
            mine = [slot for slot in self._limiter.queue.held if slot.owner is self]
            self._limiter.queue.remove(*mine)
            self._limiter.changed.notify_all()

    def sleep(self, seconds: float) -> None:
        """Wait between two tries of a request.

        Raises:
            CallEndedError: ``abandon`` was called.
        """
        with self._limiter.changed:
            if self._limiter.changed.wait_for(lambda: self._has_ended, seconds):
                raise CallEndedError


PROCESS_LIMITER: Final = ConcurrencyLimiter()


class TaskLimiter:
    """Bounds the requests of all tasks of one event loop."""

    def __init__(self) -> None:
        self._queue = _SlotQueue()

    async def acquire(self, limit: int, group: object, *, exclusive: bool = False) -> Slot:
        """Wait for a slot and return it; see ``Slot``."""
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def grant() -> None:
            if not granted.done():
                granted.set_result(None)

        slot = Slot(self, limit, group, exclusive, grant)
        try:
            self._queue.add(slot)
            await granted
        except BaseException:
            self.release(slot)
            raise
        return slot

    def release(self, slot: Slot) -> None:
        """Release a slot."""
        self._queue.remove(slot)


# ---------------------------------------------------------------- threads and event loops


class Workers(Generic[W, R]):
    """Does the work of one call in threads, and returns the results as they come.

    The threads are daemons: a request that an error or Ctrl-C leaves behind delays neither the
    caller nor the end of the process.

    Args:
        perform: Does one piece of work: in a thread of its own, or in the thread that waits for
            the result if there is only one piece.
    """

    def __init__(self, perform: Callable[[W], R]) -> None:
        self._perform = perform
        self._pending: list[W] = []
        self._running = 0
        self._results: queue.SimpleQueue[tuple[W, R] | BaseException] = queue.SimpleQueue()

    def submit(self, work: W) -> None:
        """Have ``work`` done."""
        self._pending.append(work)

    def receive(self) -> tuple[W, R]:
        """Wait for a piece of work to be done, and return it with its result.

        Raises:
            BaseException: What ``perform`` raised.
        """
        if self._running == 0 and len(self._pending) == 1:
            work = self._pending.pop()
            return work, self._perform(work)
        for work in self._pending:
            self._start(work)
        self._pending.clear()
        result = self._results.get()
        self._running -= 1
        if isinstance(result, BaseException):
            raise result
        return result

    def _start(self, work: W) -> None:
        def run() -> None:
            try:
                self._results.put((work, self._perform(work)))
            except BaseException as error:  # noqa: BLE001 - raised again by receive
                self._results.put(error)

        self._running += 1
        background.run(run, "embed")


class LoopLocal(ForkAware, Generic[T]):
    """One ``T`` for each event loop: connections and semaphores belong to one loop.

    Args:
        make: Makes one.
        leave: Called with each in a forked child, before it is forgotten there.
    """

    def __init__(self, make: Callable[[], T], leave: Callable[[T], None] | None = None) -> None:
        self._make = make
        self._leave = leave
        self._lock = threading.Lock()
        self._of_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, T] = WeakKeyDictionary()
        fork.register(self)

    def get(self) -> T:
        """Return that of the running loop, made at first use."""
        loop = asyncio.get_running_loop()
        with self._lock:
            # What was used in a loop may refer to it, and so keep its own weak key alive.
            for other in [other for other in self._of_loop if other.is_closed()]:
                del self._of_loop[other]
            if loop not in self._of_loop:
                self._of_loop[loop] = self._make()
            return self._of_loop[loop]

    def pop(self) -> T | None:
        """Remove and return that of the running loop."""
        with self._lock:
            return self._of_loop.pop(asyncio.get_running_loop(), None)

    def after_fork_in_child(self) -> None:
        """Forget all: no loop of the parent runs in the child."""
        if self._leave is not None:
            for value in list(self._of_loop.values()):
                self._leave(value)
        fork.keep_inherited(self._of_loop)
        self._of_loop = WeakKeyDictionary()
        self._lock = threading.Lock()


LOOP_LIMITERS: Final[LoopLocal[TaskLimiter]] = LoopLocal(TaskLimiter)

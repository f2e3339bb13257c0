"""Batches of concurrent calls, coalesced into few requests.

A batch waits for nothing but a free slot. Batches that queue up in the meantime are sent in one
request, first come first served; a batch that finds no other is sent at once. So requests grow with
the load.

A shared request does not couple its callers. When it is refused or answered wrongly, each of its
batches is sent again by itself, and a caller that is cancelled cancels nothing of the others.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from emberd.client import row_formats, usage, wire
from emberd.client.batches import most_tokens
from emberd.client.event_loops import Steps, finish, in_slices
from emberd.client.limits import CallSlots, Slot
from emberd.client.wire import Embeddings, Outcome, Request, ServerLost, TooLong
from emberd.endpoint import Endpoint
from emberd.errors import BadReplyError, RejectedError, RequestTimeoutError
from emberd.system import fork

# Of calls that are made at once, one begins at least in every second turn of the loop (see
# ``event_loops``): this many turns without a new one mean that all have begun.
_TURNS: Final = 3


@dataclass(frozen=True, slots=True)
class MergeKey:
    """What batches must have in common to be sent in one request.

    Attributes:
        endpoint: Where they are sent.
        dimensions: Length to which the server is asked to cut the vectors.
        holds_ids: They are token ids, which cannot be mixed with texts.
        most_texts: Most texts in one request.
    """

    endpoint: Endpoint
    dimensions: int | None
    holds_ids: bool
    most_texts: int

    @classmethod
    def of(cls, endpoint: Endpoint, request: Request, most_texts: int) -> MergeKey:
        """Return the key of a batch that ``request`` would embed by itself."""
        holds_ids = isinstance(request.inputs[0], list)
        return cls(endpoint, request.dimensions, holds_ids, endpoint.batch_size(most_texts))


Answer = Outcome | Embeddings | None
"""A part of an answer, or the outcome of a request; None if the batch is to be sent by itself."""


class _ThreadAnswer:
    """What a thread waits for.

    Unlike with a ``Future``, a call that was interrupted may be repeated, and wakes the thread.
    """

    def __init__(self) -> None:
        self._is_done = threading.Event()
        self._answer: Answer = None

    def done(self) -> bool:
        return self._is_done.is_set()

    def set_result(self, answer: Answer) -> None:
        if not self._is_done.is_set():
            self._answer = answer
        self._is_done.set()

    def cancel(self) -> None:
        self._is_done.set()

    def result(self) -> Answer:
        self._is_done.wait()
        return self._answer


OnSend = Callable[[int], None]
"""Called with how many batches a request has, when it is sent."""


def _ignore(count: int) -> None:
    """Do nothing."""


@dataclass(slots=True, eq=False)
class _Entry:
    """A batch that waits: for a request, and then for its part of the answer.

    Attributes:
        request: The request that would embed it by itself.
        tokens: About how many tokens its texts have.
        answer: Done once it has its answer, or its caller waits no more.
        sent_with: All batches of its request, itself included; empty while it waits for one.
        task: The task that sends the request.
    """

    request: Request
    tokens: int
    answer: _ThreadAnswer | asyncio.Future[Answer]
    sent_with: Sequence[_Entry] = ()
    task: asyncio.Task[None] | None = None

    def give(self, answer: Answer) -> None:
        """Answer it, unless it is over."""
        with suppress(asyncio.InvalidStateError):
            self.answer.set_result(answer)


def _count(entries: Iterable[_Entry]) -> int:
    """Return how many texts the entries have."""
    return sum(len(entry.request.inputs) for entry in entries)


def _take(waiting: deque[_Entry], key: MergeKey, taken: list[_Entry]) -> None:
    """Move the first of ``waiting`` to ``taken``, which is empty: as many as one request holds."""
    count = tokens = 0
    while waiting:
        entry = waiting[0]
        count, tokens = count + len(entry.request.inputs), tokens + entry.tokens
        if taken and (count > key.most_texts or tokens > most_tokens(key.endpoint)):
            return
        if not entry.answer.done():
            # In this order: after an interrupt, each is answered that was taken.
            taken.append(entry)
            entry.sent_with = taken
        waiting.popleft()


def _distribute(
    entries: Sequence[_Entry], outcome: Outcome, endpoint: Endpoint, *, can_reconnect: bool
) -> Steps[None]:
    """Give each entry its part of the outcome of their request.

    Args:
        entries: What was sent in the request.
        outcome: What became of it.
        endpoint: Where it was sent.
        can_reconnect: A lost server is replaced, and each batch then sent by itself.
    """
    if len(entries) == 1:
        entries[0].give(outcome)
        return
    answer = wire.body_or_failure(outcome, endpoint.url, endpoint.task)
    try:
        if isinstance(answer, bytes):
            tokens = wire.total_tokens(entry.request for entry in entries)
            found = yield from row_formats.read(endpoint, answer, _count(entries), tokens)
            vectors = iter(found.vectors)
            read = usage.divide(found.tokens, [entry.tokens for entry in entries])
            for entry, share in zip(entries, read, strict=True):
                part = list(islice(vectors, len(entry.request.inputs)))
                entry.give(Embeddings(part, found.model, share))
            return
    except BadReplyError as error:
        answer = error
    # One of the batches may be the cause, such as one with a text that is too long.
    by_itself = isinstance(answer, TooLong | RejectedError | BadReplyError | RequestTimeoutError)
    by_itself |= isinstance(answer, ServerLost) and answer.reached and not can_reconnect
    for entry in entries:
        entry.give(None if by_itself else outcome)


# ---------------------------------------------------------------- threads

Post = Callable[[Request, Slot | None], Outcome]
"""Sends a request and releases the slot; without one it waits for one."""


class ThreadMerger(fork.ForkAware):
    """The requests of one client, from all its threads.

    The thread that gets a slot first sends for all that wait, and gives each its part.

    Args:
        can_reconnect: Whether a lost server is replaced.
        on_send: Called with how many batches a request has, when it is sent.
    """

    def __init__(self, *, can_reconnect: bool, on_send: OnSend = _ignore) -> None:
        self._can_reconnect = can_reconnect
        self._on_send = on_send
        self.after_fork_in_child()
        fork.register(self)

    def after_fork_in_child(self) -> None:
        """Start empty: the threads that waited do not exist in the child."""
        self._lock = threading.Lock()
        self._queues: dict[MergeKey, deque[_Entry]] = {}

    def send(
        self, key: MergeKey, request: Request, tokens: int, slots: CallSlots, post: Post
    ) -> Outcome | Embeddings:
        """Return the part of an answer that is for ``request``, or the outcome of its request.

        Args:
            key: What it has in common with the batches that it may be sent with.
            request: The request that would embed the batch by itself.
            tokens: About how many tokens its texts have.
            slots: The slots of the call.
            post: Sends a request, in this thread.
        """
        answer = _ThreadAnswer()
        mine = _Entry(request, tokens, answer)
        with self._lock:
            queue = self._queues.setdefault(key, deque())
            queue.append(mine)
        try:
            while not (mine.sent_with or answer.done()):
                self._send_first(key, queue, mine, slots, post)
            given = answer.result()
        finally:
            answer.cancel()  # whatever ended the waiting
            mine.sent_with = ()  # no reference cycle: it would keep the reply until a collection
        return post(request, None) if given is None else given

    def _send_first(
        self,
        key: MergeKey,
        queue: deque[_Entry],
        mine: _Entry,
        slots: CallSlots,
        post: Post,
    ) -> None:
        slot = slots.acquire_unless(lambda: bool(mine.sent_with) or mine.answer.done())
        if slot is None:
            return
        entries: list[_Entry] = []
        try:
            with self._lock:
                _take(queue, key, entries)
            if not entries:
                slot.release()
                return
            if entries != [mine]:
                slots.recheck()  # the threads whose batches are taken need no slot
            self._on_send(len(entries))
            outcome = post(wire.merge([entry.request for entry in entries]), slot)
            can_reconnect = self._can_reconnect
            finish(_distribute(entries, outcome, key.endpoint, can_reconnect=can_reconnect))
        except BaseException:
            # It concerns the call of this thread; the batches of the others are sent again.
            slot.release()
            for entry in entries:
                entry.give(None)
            raise


# ---------------------------------------------------------------- tasks

AsyncPost = Callable[[Request, Slot | None], Awaitable[Outcome]]
"""Sends a request and releases the slot; without one it waits for one."""

Acquire = Callable[[], Awaitable[Slot]]
"""Waits for a slot."""


@dataclass(slots=True)
class _TaskQueue:
    waiting: deque[_Entry] = field(default_factory=deque)
    task: asyncio.Task[None] | None = None  # waits for a slot to send the first of them


class TaskMerger:
    """The requests of one client in one event loop.

    Args:
        can_reconnect: Whether a lost server is replaced.
        on_send: Called with how many batches a request has, when it is sent.
    """

    def __init__(self, *, can_reconnect: bool, on_send: OnSend = _ignore) -> None:
        self._can_reconnect = can_reconnect
        self._on_send = on_send
        self._queues: dict[MergeKey, _TaskQueue] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # a loop holds its tasks weakly

    async def send(
        self,
        key: MergeKey,
        request: Request,
        tokens: int,
        acquire: Acquire,
        post: AsyncPost,
    ) -> Outcome | Embeddings:
        """Do as ``ThreadMerger.send``, with slots from ``acquire``."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        entry = _Entry(request, tokens, future)
        queue = self._queues.setdefault(key, _TaskQueue())
        queue.waiting.append(entry)
        self._start(key, queue, acquire, post)
        try:
            answer = await future
        except asyncio.CancelledError:
            # The request is cancelled if no other caller wants it. Its connection is closed then.
            task, others = entry.task or queue.task, entry.sent_with or queue.waiting
            if task is not None and all(other.answer.done() for other in others):
                task.cancel()
                await asyncio.wait([task])
            raise
        finally:
            entry.sent_with = ()  # as above
        return await post(request, None) if answer is None else answer

    def _start(self, key: MergeKey, queue: _TaskQueue, acquire: Acquire, post: AsyncPost) -> None:
        """Have one task wait for a slot, if a batch waits and no task does."""
        if queue.task is None and not all(entry.answer.done() for entry in queue.waiting):
            queue.task = asyncio.create_task(self._send_first(key, queue, acquire, post))
            self._tasks.add(queue.task)
            queue.task.add_done_callback(self._tasks.discard)

    async def _send_first(
        self, key: MergeKey, queue: _TaskQueue, acquire: Acquire, post: AsyncPost
    ) -> None:
        entries: list[_Entry] = []
        task = asyncio.current_task()
        try:
            await _until_begun(queue.waiting, key.most_texts)
            slot = await acquire()
            _take(queue.waiting, key, entries)
            queue.task = None
            self._start(key, queue, acquire, post)  # the rest, with the next slot
            if not entries:
                slot.release()
                return
            for entry in entries:
                entry.task = task
            self._on_send(len(entries))
            outcome = await post(wire.merge([entry.request for entry in entries]), slot)
            can_reconnect = self._can_reconnect
            await in_slices(
                _distribute(entries, outcome, key.endpoint, can_reconnect=can_reconnect)
            )
        except asyncio.CancelledError:
            for entry in entries:
                entry.answer.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - raised again by the callers
            if len(entries) == 1 and not entries[0].answer.done():
                entries[0].answer.set_exception(error)  # type: ignore[union-attr]  # a task's
            for entry in entries:
                entry.give(None)
        finally:
            if queue.task is task:
                queue.task = None
                self._start(key, queue, acquire, post)


async def _until_begun(waiting: deque[_Entry], most_texts: int) -> None:
    """Return when no more calls are about to begin: counted in turns of the loop, not in time."""
    turns, seen = 0, 0
    while turns < _TURNS and _count(waiting) < most_texts:
        turns, seen = (0, len(waiting)) if len(waiting) > seen else (turns + 1, seen)
        await asyncio.sleep(0)

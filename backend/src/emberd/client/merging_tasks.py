"""Merging the batches of the tasks of one event loop; see ``merging``."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from emberd.client import merging
from emberd.client.merging import Kind
from emberd.client.protocol import Ask, Outcome
from emberd.client.replies import Answer
from emberd.endpoint import Endpoint

# Calls that are made at once begin in every second turn of the loop, see ``aio``: so many turns
# with nobody new are the end of them.
_TURNS: Final = 3

Exchange = Callable[[Endpoint, Callable[[], Ask]], Awaitable[Outcome]]
"""Sends to an endpoint what the function gives once there is a slot."""


class NobodyWaitsError(Exception):
    """All callers went away while they waited for a slot."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """A batch that waits, for a request and then for its answer."""

    ask: Ask
    tokens: int
    future: asyncio.Future[Outcome | Answer | None]
    request: asyncio.Task[None] | None = None
    together: Sequence[_Waiting] = ()

    @property
    def is_over(self) -> bool:
        return self.future.done()

    def answer(self, answer: Outcome | Answer | None) -> None:
        if not self.future.done():
            self.future.set_result(answer)


@dataclass(slots=True)
class _Queue:
    waiting: deque[_Waiting] = field(default_factory=deque)
    gathering: asyncio.Task[None] | None = None


class TaskMerger:
    """The requests of one client in one event loop.

    Args:
        can_heal: Whether somebody brings a server back that went away.
    """

    def __init__(self, *, can_heal: bool) -> None:
        self._can_heal = can_heal
        self._queues: dict[Kind, _Queue] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # a loop holds its tasks weakly

    async def send(self, kind: Kind, ask: Ask, tokens: int, exchange: Exchange) -> Outcome | Answer:
        """Return what became of ``ask``: its part of an answer, or the outcome of a request.

        Args:
            kind: What it has in common with those it may go with.
            ask: The request, as it would go by itself.
            tokens: About how many tokens its texts have.
            exchange: Sends a request.
        """
        batch = _Waiting(ask, tokens, asyncio.get_running_loop().create_future())
        queue = self._queues.setdefault(kind, _Queue())
        queue.waiting.append(batch)
        self._gather(kind, queue, exchange)
        try:
            answer = await batch.future
        except asyncio.CancelledError:
            await _leave(batch, queue)
            raise
        return await exchange(kind.endpoint, lambda: ask) if answer is None else answer

    def _gather(self, kind: Kind, queue: _Queue, exchange: Exchange) -> None:
        """Have one request wait for a slot, where something waits for a request."""
        if queue.gathering is None and not _are_over(queue.waiting):
            queue.gathering = asyncio.create_task(self._request(kind, queue, exchange))
            self._tasks.add(queue.gathering)
            queue.gathering.add_done_callback(self._tasks.discard)

    async def _request(self, kind: Kind, queue: _Queue, exchange: Exchange) -> None:
        together: list[_Waiting] = []
        task = asyncio.current_task()

        def depart() -> Ask:
            together.extend(merging.take(queue.waiting, kind.most_texts))
            queue.gathering = None
            self._gather(kind, queue, exchange)  # the rest, with the next slot
            for batch in together:
                batch.request, batch.together = task, together
            if not together:
                raise NobodyWaitsError
            return merging.merged(together)

        try:
            await _begun(queue.waiting, kind.most_texts)
            outcome = await exchange(kind.endpoint, depart)
            merging.share(together, outcome, kind.endpoint.url, can_heal=self._can_heal)
        except asyncio.CancelledError:
            for batch in together:
                batch.future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - raised again by who waits
            _fail(together, error)
        finally:
            if queue.gathering is task:
                queue.gathering = None
                self._gather(kind, queue, exchange)


async def _begun(waiting: deque[_Waiting], most_texts: int) -> None:
    """Return when no more calls are about to begin: in the loop's turns, and not in time."""
    turns, seen = 0, 0
    while turns < _TURNS and merging.texts(waiting) < most_texts:
        turns, seen = (0, len(waiting)) if len(waiting) > seen else (turns + 1, seen)
        await asyncio.sleep(0)


def _are_over(batches: Iterable[_Waiting]) -> bool:
    return all(batch.is_over for batch in batches)


async def _leave(batch: _Waiting, queue: _Queue) -> None:
    """Take the request along if nobody else wants it, and return when its connection is closed."""
    request, others = batch.request or queue.gathering, batch.together or queue.waiting
    if request is not None and _are_over(others):
        request.cancel()
        await asyncio.wait([request])


def _fail(together: list[_Waiting], error: Exception) -> None:
    if len(together) > 1:
        for batch in together:
            batch.answer(None)
    elif together and not together[0].is_over:
        together[0].future.set_exception(error)

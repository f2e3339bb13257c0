"""Batches of concurrent calls, merged into few requests.

A batch waits for nothing but a free slot, and for calls that are just beginning. Those that gather
in the meantime go together, first come first served; where nobody else is there, a batch goes by
itself and at once. So the more there is to do, the fuller is each request.

What goes together stays apart in its fate. When a request is refused, or answered wrongly, each of
its batches is sent again by itself; and a caller that goes away takes nothing along.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from emberd.client import protocol, replies
from emberd.client.batches import BATCH_TOKENS
from emberd.client.protocol import Ask, Failure, Outcome, TooLong
from emberd.client.replies import Answer
from emberd.errors import BadReplyError, RejectedError
from emberd.settings import Endpoint

# Calls that are made at once begin in every second turn of the loop, see ``aio``: so many turns
# with nobody new are the end of them.
_TURNS: Final = 3

Exchange = Callable[[Endpoint, Callable[[], Ask]], Awaitable[Outcome]]
"""Sends to an endpoint what the function gives once there is a slot."""


class NobodyWaitsError(Exception):
    """All callers went away while they waited for a slot."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What batches must have in common to go together.

    Attributes:
        endpoint: Where they go.
        dimensions: What the server is asked to cut to.
        holds_ids: They are token ids, which cannot stand beside texts.
        most_texts: Most texts in one request.
    """

    endpoint: Endpoint
    dimensions: int | None
    holds_ids: bool
    most_texts: int


@dataclass(slots=True, eq=False)
class _Waiting:
    """A batch that waits, for a request and then for its answer.

    None is the answer to one that is to go by itself.
    """

    ask: Ask
    tokens: int
    future: asyncio.Future[Outcome | Answer | None]
    request: asyncio.Task[None] | None = None
    together: Sequence[_Waiting] = ()

    @property
    def texts(self) -> int:
        return len(self.ask.inputs)

    def answer(self, answer: Outcome | Answer | None) -> None:
        if not self.future.done():  # its caller may have gone away
            self.future.set_result(answer)


@dataclass(slots=True)
class _Queue:
    waiting: deque[_Waiting] = field(default_factory=deque)
    gathering: asyncio.Task[None] | None = None


class Coalescer:
    """The requests of one client in one event loop."""

    def __init__(self) -> None:
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
        if queue.gathering is None and not _is_over(queue.waiting):
            queue.gathering = asyncio.create_task(self._request(kind, queue, exchange))
            self._tasks.add(queue.gathering)
            queue.gathering.add_done_callback(self._tasks.discard)

    async def _request(self, kind: Kind, queue: _Queue, exchange: Exchange) -> None:
        together: list[_Waiting] = []
        task = asyncio.current_task()

        def depart() -> Ask:
            together.extend(_taken(queue.waiting, kind.most_texts))
            queue.gathering = None
            self._gather(kind, queue, exchange)  # the rest, with the next slot
            for batch in together:
                batch.request, batch.together = task, together
            if not together:
                raise NobodyWaitsError
            return protocol.merged([batch.ask for batch in together])

        try:
            await _settled(queue.waiting, kind.most_texts)
            outcome = await exchange(kind.endpoint, depart)
        except asyncio.CancelledError:
            for batch in together:
                batch.future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - raised again by who waits
            _fail(together, error)
        else:
            _share(together, outcome, kind.endpoint.url)
        finally:
            if queue.gathering is task:
                queue.gathering = None
                self._gather(kind, queue, exchange)


async def _settled(waiting: deque[_Waiting], most_texts: int) -> None:
    """Return when no more calls are about to begin: in the loop's turns, and not in time."""
    turns, seen = 0, 0
    while turns < _TURNS and sum(batch.texts for batch in waiting) < most_texts:
        turns, seen = (0, len(waiting)) if len(waiting) > seen else (turns + 1, seen)
        await asyncio.sleep(0)


def _taken(waiting: deque[_Waiting], most_texts: int) -> list[_Waiting]:
    """Remove and return the first of ``waiting``, as many as one request takes."""
    together: list[_Waiting] = []
    texts = tokens = 0
    while waiting:
        batch = waiting[0]
        texts, tokens = texts + batch.texts, tokens + batch.tokens
        if together and (texts > most_texts or tokens > BATCH_TOKENS):
            break
        waiting.popleft()
        if not batch.future.done():
            together.append(batch)
    return together


def _is_over(batches: Iterable[_Waiting]) -> bool:
    return all(batch.future.done() for batch in batches)


async def _leave(batch: _Waiting, queue: _Queue) -> None:
    """Take the request along if nobody else wants it, and return when its connection is closed."""
    request, others = batch.request or queue.gathering, batch.together or queue.waiting
    if request is not None and _is_over(others):
        request.cancel()
        await asyncio.wait([request])


def _fail(together: list[_Waiting], error: Exception) -> None:
    if len(together) > 1:
        for batch in together:
            batch.answer(None)
    elif together and not together[0].future.done():
        together[0].future.set_exception(error)


def _share(together: list[_Waiting], outcome: Outcome, url: str) -> None:
    if len(together) == 1:
        together[0].answer(outcome)
        return
    answer = _answer(outcome, url, sum(batch.texts for batch in together))
    if isinstance(answer, Answer):
        start = 0
        for batch in together:
            end = start + batch.texts
            batch.answer(Answer(answer.vectors[start:end], answer.model))
            start = end
        return
    # A text that is too long, or refused, or computed wrongly, is one of the batches' alone.
    by_itself = isinstance(answer, TooLong | RejectedError | BadReplyError)
    for batch in together:
        batch.answer(None if by_itself else outcome)


def _answer(outcome: Outcome, url: str, texts: int) -> Answer | Failure:
    body = protocol.judge(outcome, url)
    try:
        return replies.read(body, texts) if isinstance(body, bytes) else body
    except BadReplyError as error:
        return error

"""Batches of concurrent calls, merged into few requests: which go together, and their fate.

A batch waits for nothing but a free slot. Those that gather in the meantime go together, first come
first served; where nobody else is there, a batch goes by itself and at once. So the more there is
to do, the fuller is each request.

What goes together stays apart in its fate. When a request is refused, or answered wrongly, each of
its batches is sent again by itself; and a caller that goes away takes nothing along.

``merging_tasks`` and ``merging_threads`` do the waiting.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from emberd.client import protocol, replies
from emberd.client.batches import BATCH_TOKENS
from emberd.client.protocol import Ask, Failure, Gone, Outcome, TooLong
from emberd.client.replies import Answer
from emberd.endpoint import Endpoint
from emberd.errors import BadReplyError, RejectedError, RequestTimeoutError


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

    @classmethod
    def of(cls, endpoint: Endpoint, ask: Ask, most_texts: int) -> Kind:
        """Return the kind of a batch that would go as ``ask`` by itself."""
        return cls(endpoint, ask.dimensions, isinstance(ask.inputs[0], list), most_texts)


class Waiting(Protocol):
    """A batch that waits."""

    @property
    def ask(self) -> Ask:
        """The request, as it would go by itself."""

    @property
    def tokens(self) -> int:
        """About how many tokens its texts have."""

    @property
    def is_over(self) -> bool:
        """Whether it has its answer, or nobody waits for it any more."""

    def answer(self, answer: Outcome | Answer | None) -> None:
        """Give it its answer, unless it is over; None has it go by itself."""


W = TypeVar("W", bound=Waiting)


def texts(waiting: Sequence[Waiting] | deque[W]) -> int:
    """Return how many texts wait."""
    return sum(len(batch.ask.inputs) for batch in waiting)


def take(waiting: deque[W], most_texts: int) -> list[W]:
    """Remove and return the first of ``waiting``, as many as one request takes."""
    together: list[W] = []
    count = tokens = 0
    while waiting:
        batch = waiting[0]
        count, tokens = count + len(batch.ask.inputs), tokens + batch.tokens
        if together and (count > most_texts or tokens > BATCH_TOKENS):
            break
        waiting.popleft()
        if not batch.is_over:
            together.append(batch)
    return together


def merged(together: Sequence[Waiting]) -> Ask:
    """Return the request for all of them."""
    return protocol.merged([batch.ask for batch in together])


def share(together: Sequence[Waiting], outcome: Outcome, url: str, *, can_heal: bool) -> None:
    """Give each its part of what came of their request.

    Args:
        together: What went together.
        outcome: What came of it.
        url: Where it went, for errors.
        can_heal: A server that went away is brought back, and each batch then sent by itself.
    """
    if len(together) == 1:
        together[0].answer(outcome)
        return
    answer = _answer(outcome, url, texts(together))
    if isinstance(answer, Answer):
        start = 0
        for batch in together:
            end = start + len(batch.ask.inputs)
            batch.answer(Answer(answer.vectors[start:end], answer.model))
            start = end
        return
    # It may be one of the batches' alone, that has a text which is too long, say, or takes long.
    by_itself = isinstance(answer, TooLong | RejectedError | BadReplyError | RequestTimeoutError)
    by_itself = by_itself or (isinstance(answer, Gone) and answer.reached and not can_heal)
    for batch in together:
        batch.answer(None if by_itself else outcome)


def _answer(outcome: Outcome, url: str, count: int) -> Answer | Failure:
    body = protocol.judge(outcome, url)
    try:
        return replies.read(body, count) if isinstance(body, bytes) else body
    except BadReplyError as error:
        return error

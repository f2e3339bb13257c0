"""Merging the batches of threads; see ``merging``.

Whichever thread gets a slot first sends for all that wait, and gives each its part.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from emberd.client import merging
from emberd.client.merging import Kind
from emberd.client.protocol import Ask, Outcome
from emberd.client.replies import Answer
from emberd.system import fork
from emberd.system.fork import ForkAware

Exchange = Callable[[Callable[[], Ask | None], Callable[[], bool]], Outcome | None]
"""Sends what the first function gives once there is a slot; None when it gives nothing, or when the
second, asked while there is none, says that no slot is wanted any more."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """A batch that waits, for a request and then for its answer."""

    ask: Ask
    tokens: int
    is_taken: bool = False
    is_over: bool = False
    given: Outcome | Answer | None = None
    answered: threading.Event = field(default_factory=threading.Event)

    def answer(self, answer: Outcome | Answer | None) -> None:
        self.given, self.is_over = answer, True
        self.answered.set()


class ThreadMerger(ForkAware):
    """The requests of one client, from all its threads.

    Args:
        can_heal: Whether somebody brings a server back that went away.
    """

    def __init__(self, *, can_heal: bool) -> None:
        self._can_heal = can_heal
        self.after_fork_in_child()
        fork.register(self)

    def after_fork_in_child(self) -> None:
        """Start anew: the threads that waited do not exist in the child."""
        self._lock = threading.Lock()
        self._queues: dict[Kind, deque[_Waiting]] = {}

    def send(self, kind: Kind, ask: Ask, tokens: int, exchange: Exchange) -> Outcome | Answer:
        """Return what became of ``ask``: its part of an answer, or the outcome of a request.

        Args:
            kind: What it has in common with those it may go with.
            ask: The request, as it would go by itself.
            tokens: About how many tokens its texts have.
            exchange: Sends a request, in this thread.
        """
        batch = _Waiting(ask, tokens)
        with self._lock:
            queue = self._queues.setdefault(kind, deque())
            queue.append(batch)
        try:
            while not batch.is_taken:
                self._request(kind, queue, batch, exchange)
            batch.answered.wait()
        finally:
            batch.is_over = True  # whatever ended the waiting
        answer = batch.given
        if answer is None:
            answer = exchange(lambda: ask, lambda: False)
        if answer is None:
            raise RuntimeError("A request that nobody took back was not sent.")
        return answer

    def _request(
        self, kind: Kind, queue: deque[_Waiting], mine: _Waiting, exchange: Exchange
    ) -> None:
        together: list[_Waiting] = []

        def depart() -> Ask | None:
            with self._lock:
                together.extend(merging.take(queue, kind.most_texts))
                for batch in together:
                    batch.is_taken = True
            return merging.merged(together) if together else None

        try:
            outcome = exchange(depart, lambda: mine.is_taken)
            if outcome is not None:
                merging.share(together, outcome, kind.endpoint.url, can_heal=self._can_heal)
        except BaseException:
            # Of this thread's own call; the others go by themselves.
            for batch in together:
                batch.answer(None)
            raise

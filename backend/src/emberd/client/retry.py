"""When a request is sent again, and when not."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

from emberd.client.protocol import BUSY, Ask, Outcome, Reply, Trouble

# An exponent that no double overflows at; the cap on a pause is reached long before.
_MAX_DOUBLINGS: Final = 30
_TRIES_BEFORE_HEALING: Final = 2


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait for so long before the next step."""

    seconds: float


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How patient to be.

    Attributes:
        connect_tries: Tries when no connection comes about, or it breaks off.
        timeout_tries: Tries when there is no answer in time: each costs a whole timeout.
        failure_tries: Tries when the server fails with status 500.
        busy_s: How long to go on asking a server that says it is busy, in seconds.
        first_s: Longest pause before the second try, in seconds; it doubles from try to try.
        longest_s: Longest pause of all, in seconds.
        longest_retry_after_s: Longest pause that a server may ask for, in seconds.
    """

    connect_tries: int = 5
    timeout_tries: int = 2
    failure_tries: int = 2
    busy_s: float = 120.0
    first_s: float = 0.25
    longest_s: float = 8.0
    longest_retry_after_s: float = 30.0

    @classmethod
    def usual(cls, timeout_s: float, *, can_heal: bool) -> RetryPolicy:
        """Return the policy for requests of ``timeout_s``.

        Where somebody can bring the server back, asking a dead address again and again would
        only put that off; one more try covers a connection that was closed for being idle.
        """
        patient = cls(busy_s=timeout_s)
        return replace(patient, connect_tries=_TRIES_BEFORE_HEALING) if can_heal else patient

    def pause(
        self, answer: Reply | Trouble, tries: int, seconds: float, jitter: float
    ) -> float | None:
        """Return how long to wait before the request is sent again; None when it is not.

        Args:
            answer: The last answer.
            tries: How many answers of this kind there were so far.
            seconds: How long all of it took.
            jitter: A random number from 0 to 1; full jitter keeps clients apart that were
                refused at the same moment.
        """
        most = self._most_tries(answer)
        if most is not None and tries >= most:
            return None
        doublings = min(tries - 1, _MAX_DOUBLINGS)
        pause = jitter * min(self.longest_s, self.first_s * 2.0**doublings)
        if isinstance(answer, Reply) and answer.status in BUSY:
            asked = retry_after_s(answer.retry_after)
            pause = max(pause, min(asked, self.longest_retry_after_s))
            return pause if seconds + pause <= self.busy_s else None
        return pause

    def _most_tries(self, answer: Reply | Trouble) -> int | None:
        if isinstance(answer, Trouble):
            if answer.kind == "changed":
                return 1  # the server that was verified is gone; a retry would not bring it back
            return self.timeout_tries if answer.kind == "timeout" else self.connect_tries
        if answer.status in BUSY:
            return None  # until busy_s
        if answer.status == HTTPStatus.INTERNAL_SERVER_ERROR:
            return self.failure_tries
        return 1


Exchange = Generator[Ask | Pause, Reply | Trouble | None, Outcome]
"""Steps of one request: an ``Ask`` wants its answer sent in, a ``Pause`` wants None."""


def exchange(
    ask: Ask,
    policy: RetryPolicy,
    *,
    clock: Callable[[], float] = time.monotonic,
    jitter: Callable[[], float] = random.random,
) -> Exchange:
    """Send ``ask`` until there is an answer that another try would not change.

    The driver sends what is yielded and waits what it is told to: with threads, or with tasks.
    """
    began = clock()
    reached = False
    # Each kind by itself: a server that was busy a few times may still drop one connection.
    tries: Counter[str] = Counter()
    while True:
        answer = yield ask
        if answer is None:  # only a driver that breaks the protocol does so
            raise RuntimeError("An Ask was answered with None.")
        tries[_kind(answer)] += 1
        reached = reached or (isinstance(answer, Trouble) and answer.kind == "broken")
        seconds = clock() - began
        pause = policy.pause(answer, tries[_kind(answer)], seconds, jitter())
        if pause is None:
            return Outcome(answer, tries.total(), seconds, reached)
        yield Pause(pause)


def _kind(answer: Reply | Trouble) -> str:
    if isinstance(answer, Reply):
        return "busy" if answer.status in BUSY else "status"
    return answer.kind if answer.kind in {"timeout", "changed"} else "connection"


def retry_after_s(header: str | None) -> float:
    """Return the seconds that a Retry-After header asks for; 0 when it asks for nothing."""
    if not header:
        return 0.0
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        # A date on the server's wall clock can only be compared with ours.
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0

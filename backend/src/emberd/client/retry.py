"""When a request is sent again."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

from emberd.client.wire import BUSY, Outcome, Reply, TransportError

RETRIED: Final = (
    *sorted(str(int(status)) for status in (*BUSY, HTTPStatus.INTERNAL_SERVER_ERROR)),
    *("refused", "broken", "timeout"),
)
"""The outcomes after which a request may be sent again, as the counters name them."""

# An exponent at which no double overflows; the longest pause is reached long before.
_MAX_DOUBLINGS: Final = 30
_TRIES_BEFORE_RECONNECT: Final = 2


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and how long, a request is retried.

    Attributes:
        connect_tries: Tries when no connection is made, or it breaks off.
        timeout_tries: Tries when there is no answer in time: each costs a whole timeout.
        failure_tries: Tries when the server fails with status 500.
        busy_s: How long to retry while the server says it is busy, in seconds.
        total_s: No further try is planned later than this after the first, in seconds.
        first_s: Longest pause before the second try, in seconds; it doubles from try to try.
        longest_s: Longest pause of all, in seconds.
        longest_retry_after_s: Longest pause that a server may ask for, in seconds.
    """

    connect_tries: int = 5
    timeout_tries: int = 2
    failure_tries: int = 2
    busy_s: float = 120.0
    total_s: float = 240.0
    first_s: float = 0.25
    longest_s: float = 8.0
    longest_retry_after_s: float = 30.0

    @classmethod
    def usual(cls, timeout_s: float, *, can_reconnect: bool) -> RetryPolicy:
        """Return the policy for requests of ``timeout_s`` seconds.

        If a lost server is replaced, more tries at a dead address only delay that; one more try
        covers a connection that was closed for being idle.
        """
        policy = cls(busy_s=timeout_s, total_s=2 * timeout_s)
        return replace(policy, connect_tries=_TRIES_BEFORE_RECONNECT) if can_reconnect else policy

    def pause(
        self, answer: Reply | TransportError, tries: int, seconds: float, jitter: float
    ) -> float | None:
        """Return how long to wait before the request is sent again; None if it is not.

        Args:
            answer: The last answer.
            tries: How many answers of this kind there were so far.
            seconds: How long all tries took together.
            jitter: A random number from 0 to 1; full jitter spreads out clients that were refused
                at the same moment.
        """
        is_busy = isinstance(answer, Reply) and answer.status in BUSY
        if isinstance(answer, Reply):
            failed = answer.status == HTTPStatus.INTERNAL_SERVER_ERROR
            most_tries = self.failure_tries if failed else 1
        elif answer.kind == "changed":
            most_tries = 1  # the server that was verified is gone; a retry would not bring it back
        else:
            most_tries = self.timeout_tries if answer.kind == "timeout" else self.connect_tries
        # A server may break a connection off just before the timeout, again and again.
        if (not is_busy and tries >= most_tries) or seconds > self.total_s:
            return None
        doublings = min(tries - 1, _MAX_DOUBLINGS)
        pause = jitter * min(self.longest_s, self.first_s * 2.0**doublings)
        if isinstance(answer, Reply) and is_busy:
            asked = retry_after_s(answer.retry_after)
            pause = max(pause, min(asked, self.longest_retry_after_s))
            return pause if seconds + pause <= self.busy_s else None
        return pause


@dataclass(slots=True)
class Retries:
    """The tries of one request; made when it is about to be sent for the first time.

    Attributes:
        policy: When it is sent again.
        clock: Returns seconds.
        jitter: Returns random numbers from 0 to 1.
    """

    policy: RetryPolicy
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random
    _began: float = field(init=False)
    _reached: bool = False
    # Counted by kind: a server that was busy a few times may still drop one connection.
    _tries: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._began = self.clock()

    def after(self, answer: Reply | TransportError) -> float | Outcome:
        """Return how long to wait before the next try, or the outcome if there is none.

        Args:
            answer: The answer to the last try.
        """
        if isinstance(answer, Reply):
            kind = "busy" if answer.status in BUSY else "status"
        else:
            kind = answer.kind if answer.kind in {"timeout", "changed"} else "connection"
            self._reached |= answer.kind == "broken"
        self._tries[kind] += 1
        seconds = self.clock() - self._began
        pause = self.policy.pause(answer, self._tries[kind], seconds, self.jitter())
        if pause is None:
            return Outcome(answer, self._tries.total(), seconds, self._reached)
        return pause


def retry_after_s(header: str | None) -> float:
    """Return the seconds that a Retry-After header asks for; 0 without one."""
    if not header:
        return 0.0
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        # A date on the server's wall clock can only be compared with ours.
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, OverflowError, OSError):
        return 0.0

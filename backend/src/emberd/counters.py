"""What the embedders and rerankers of this process have done, in numbers.

They are counted whether or not anything reads them, so that a collector that is registered late
shows all of it (``prometheus``). No text and no key is part of them.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from typing import Final

from emberd.system import fork

CALLS: Final = "calls"
TEXTS: Final = "texts"
TOKENS: Final = "tokens"
REQUESTS: Final = "requests"
RETRIES: Final = "retries"
BATCHES: Final = "batches"
MERGED: Final = "merged_batches"
LOST: Final = "lost_servers"
CACHE_HITS: Final = "cache_hits"
CACHE_MISSES: Final = "cache_misses"
CACHE_ERRORS: Final = "cache_errors"

OK: Final = "ok"
CANCELLED: Final = "cancelled"

# A call that starts a server takes minutes.
BUCKETS_S: Final = (
    *(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
    *(2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0),
)

Labels = tuple[str, ...]


class Counters(fork.ForkAware):
    """Counts by name and labels, and durations of calls; a forked child begins with none."""

    def __init__(self) -> None:
        # (model, task) -> whether its vectors are cached. A child has the same embedders.
        self._users: dict[Labels, bool] = {}
        self.after_fork_in_child()
        fork.register(self)

    def after_fork_in_child(self) -> None:
        """Start at zero: the child is another process, and its parent's lock may be held."""
        self._lock = threading.Lock()
        self._counts: Counter[Labels] = Counter()
        # (model, task) -> calls in each bucket, the last one without a limit; and their seconds
        self._durations: dict[Labels, tuple[list[int], float]] = {}

    def begin(self, model: str, task: str, *, caches: bool) -> None:
        """Note that a model will be used, so that its counts can be shown before the first use.

        Args:
            model: The model.
            task: What it does.
            caches: Whether its vectors are cached.
        """
        with self._lock:
            self._users[model, task] = caches or self._users.get((model, task), False)

    def users(self) -> dict[Labels, bool]:
        """Return the models that are used: model and task -> whether its vectors are cached."""
        with self._lock:
            return dict(self._users)

    def count(self, name: str, *labels: str, by: int = 1) -> None:
        """Add to a count."""
        with self._lock:
            self._counts[name, *labels] += by

    def request(self, labels: Labels, outcome: str, *, is_retried: bool) -> None:
        """Count a request to a server.

        Args:
            labels: Model and task.
            outcome: Its status, or the kind of its failure.
            is_retried: Whether it is sent again.
        """
        with self._lock:
            self._counts[REQUESTS, *labels, outcome] += 1
            if is_retried:
                self._counts[RETRIES, *labels, outcome] += 1

    def batches(self, labels: Labels, together: int) -> None:
        """Count the batches that are sent in one request."""
        with self._lock:
            self._counts[BATCHES, *labels] += together
            if together > 1:
                self._counts[MERGED, *labels] += together

    def call(
        self, labels: Labels, outcome: str, texts: int, tokens: int, seconds: float | None
    ) -> None:
        """Count a call, or a window of a stream.

        Args:
            labels: Model and task.
            outcome: ``OK``, or the type of the error.
            texts: Texts that got their vector or score.
            tokens: Tokens that servers read for them.
            seconds: How long the call took; None for a window, which overlaps with others.
        """
        with self._lock:
            counts = self._counts
            counts[CALLS, *labels, outcome] += 1
            counts[TEXTS, *labels] += texts
            counts[TOKENS, *labels] += tokens
            if seconds is not None:
                buckets, total_s = self._durations.get(labels) or ([0] * (len(BUCKETS_S) + 1), 0.0)
                buckets[bisect_left(BUCKETS_S, seconds)] += 1
                self._durations[labels] = buckets, total_s + seconds

    def counts(self) -> dict[Labels, int]:
        """Return all counts: name and labels -> number."""
        with self._lock:
            return dict(self._counts)

    def durations(self) -> dict[Labels, tuple[list[int], float]]:
        """Return, by model and task, the calls in each bucket and the seconds of all of them."""
        with self._lock:
            return {key: (list(each), total) for key, (each, total) in self._durations.items()}


COUNTERS: Final = Counters()
"""Those of this process."""

"""Texts in windows, a job for each, and batches within a window.

A list is one window. A stream is read in windows of ``WINDOW_TEXTS``; two of their jobs are open at
a time, so that the server is busy at the end of a window too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from emberd.client.inputs import PreparedTexts, check_texts

if TYPE_CHECKING:
    from emberd.client.job import Job, Work

# One server-side prefill: a longer request would only wait inside the server, and time out there.
BATCH_TOKENS: Final = 16_384

WINDOW_TEXTS: Final = 1024
"""Texts are sorted by length within this many: enough to fill batches with texts of one length, and
few enough that progress goes through the caller's texts from front to back. Two windows fill as
many requests as are in flight by default."""

_BYTES_PER_TOKEN: Final = 4
_MOST_OPEN: Final = 2


class TextWindow(NamedTuple):
    """Texts of one job, and how many texts of the caller precede them."""

    texts: Iterable[str]
    offset: int


def windows(texts: Iterable[str]) -> Iterator[TextWindow]:
    """Yield ``texts`` in windows, taken as they are needed.

    Raises:
        TextError: They cannot be several texts; see ``check_texts``.
    """
    check_texts(texts)
    return _windows(iter(texts))


def _windows(texts: Iterator[str]) -> Iterator[TextWindow]:
    offset = 0
    while window := list(islice(texts, WINDOW_TEXTS)):
        yield TextWindow(window, offset)
        offset += len(window)


def awindows(texts: Iterable[str] | AsyncIterable[str]) -> AsyncIterator[TextWindow]:
    """Do as ``windows``, also for texts from an asynchronous iterable."""
    check_texts(texts)
    return _awindows(texts)


async def _awindows(texts: Iterable[str] | AsyncIterable[str]) -> AsyncIterator[TextWindow]:
    if not isinstance(texts, AsyncIterable):
        for window in windows(texts):
            yield window
        return
    gathered: list[str] = []
    offset = 0
    async for text in texts:
        gathered.append(text)
        if len(gathered) == WINDOW_TEXTS:
            yield TextWindow(gathered, offset)
            offset += len(gathered)
            gathered = []
    if gathered:
        yield TextWindow(gathered, offset)


class JobWindow:
    """The open jobs of one call, in the order of their texts.

    Args:
        max_concurrency: How many requests may be in flight.
    """

    def __init__(self, max_concurrency: int) -> None:
        self._max_concurrency = max_concurrency
        self._open: deque[Job] = deque()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def is_full(self) -> bool:
        """Whether no other job may be opened yet."""
        return len(self._open) >= _MOST_OPEN

    def append(self, job: Job) -> None:
        """Add a job at the end."""
        self._open.append(job)

    def pop_done(self) -> Job | None:
        """Remove and return the first job if it is done."""
        return self._open.popleft() if self._open and self._open[0].done else None

    @property
    def lost(self) -> list[Job]:
        """The jobs whose server is gone."""
        return [job for job in self._open if job.lost]

    def take(self) -> tuple[Job, Work] | None:
        """Return what to send now; None while nothing may be sent."""
        in_flight = sum([job.in_flight for job in self._open])
        if in_flight >= self._max_concurrency:
            return None
        jobs: Iterable[Job] = self._open
        for job in self._open:
            if job.is_bisecting:
                # A suspect batch is in flight by itself, in all jobs of the call.
                jobs = () if in_flight > job.in_flight else (job,)
                break
        for job in jobs:
            if (work := job.take()) is not None:
                return job, work
        return None


# ---------------------------------------------------------------- batches


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Texts of one request.

    Attributes:
        indices: Their places in the caller's list.
        tokens: About how many tokens they have together.
        crash_count: How often the server crashed while it worked on them.
        exclusive: They may have crashed it, so nothing else is in flight with them.
    """

    indices: tuple[int, ...]
    tokens: int = 0
    crash_count: int = 0
    exclusive: bool = False

    def halves(self, *, exclusive: bool) -> tuple[Batch, Batch]:
        """Return the two halves of a batch of at least two texts."""
        middle = len(self.indices) // 2
        half = replace(self, tokens=self.tokens // 2, exclusive=exclusive)
        return (
            replace(half, indices=self.indices[:middle]),
            replace(half, indices=self.indices[middle:]),
        )


def make_batches(prepared: PreparedTexts, batch_texts: int) -> Iterator[Batch]:
    """Yield batches that hold every text once.

    Args:
        prepared: The texts.
        batch_texts: Most texts in a batch.
    """
    window = max(batch_texts, WINDOW_TEXTS)
    for start in range(0, len(prepared.inputs), window):
        indices = range(start, min(start + window, len(prepared.inputs)))
        # Strings and token ids cannot be in one request.
        for kind in (str, list):
            of_kind = [
                (_tokens(prepared, index), index)
                for index in indices
                if isinstance(prepared.inputs[index], kind)
            ]
            # The longest first, so that no long one is left over at the end of the window.
            of_kind.sort(key=lambda entry: -entry[0])
            yield from _fill(of_kind, batch_texts)


def _fill(texts: list[tuple[int, int]], batch_texts: int) -> Iterator[Batch]:
    batch: list[int] = []
    tokens = 0
    for more, index in texts:
        if batch and (len(batch) == batch_texts or tokens + more > BATCH_TOKENS):
            yield Batch(tuple(batch), tokens)
            batch, tokens = [], 0
        batch.append(index)
        tokens += more
    if batch:
        yield Batch(tuple(batch), tokens)


def _tokens(prepared: PreparedTexts, index: int) -> int:
    given = prepared.inputs[index]
    return len(given) if isinstance(given, list) else prepared.sizes[index] // _BYTES_PER_TOKEN + 1

"""Texts in windows, and the open job of each.

A list is one window. A stream is read in windows of ``WINDOW_TEXTS``; two of their jobs are open at
a time, so that the server is busy at the end of a window too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple

from emberd.client.batches import WINDOW_TEXTS
from emberd.client.inputs import check_texts
from emberd.client.job import Job, Work

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

"""The jobs of one call in a row: one for a list, and for a stream a window of texts each.

Two are open at a time, so that the server is not left waiting at the end of a window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from itertools import islice
from typing import Final, NamedTuple

from emberd.client.job import Job, Work
from emberd.client.texts import check_texts

WINDOW_TEXTS: Final = 1024
"""Texts of one job of a stream: two such jobs fill as many requests as are in flight by default."""

_MOST_OPEN: Final = 2


class Window(NamedTuple):
    """Texts of one job, and how many came before them."""

    texts: Iterable[str]
    offset: int


class Line:
    """Jobs in the order of their texts.

    Args:
        max_concurrency: How many requests may be in flight.
    """

    def __init__(self, max_concurrency: int) -> None:
        self._max_concurrency = max_concurrency
        self._open: deque[Job] = deque()

    @property
    def has_room(self) -> bool:
        """Whether another job may be opened."""
        return len(self._open) < _MOST_OPEN

    def append(self, job: Job) -> None:
        """Add a job at the end."""
        self._open.append(job)

    def pop_done(self) -> Job | None:
        """Remove and return the first job if it is done."""
        return self._open.popleft() if self._open and self._open[0].done else None

    @property
    def is_empty(self) -> bool:
        """Whether no job is open."""
        return not self._open

    @property
    def lost(self) -> list[Job]:
        """The jobs whose server went away."""
        return [job for job in self._open if job.lost]

    def take(self) -> tuple[Job, Work] | None:
        """Return what to send now; None while nothing may be sent."""
        if sum(job.in_flight for job in self._open) >= self._max_concurrency:
            return None
        for job in self._takers():
            if (work := job.take()) is not None:
                return job, work
        return None

    def _takers(self) -> Iterable[Job]:
        hunter = next((job for job in self._open if job.hunts), None)
        if hunter is None:
            return self._open
        # What is tried alone is alone in the whole line.
        others = sum(job.in_flight for job in self._open if job is not hunter)
        return () if others else (hunter,)


def windows(texts: Iterable[str]) -> Iterator[Window]:
    """Yield ``texts`` in windows, taken as they are needed.

    Raises:
        TextError: They cannot be several texts; see ``check_texts``.
    """
    check_texts(texts)
    source = iter(texts)
    return _windows(lambda: list(islice(source, WINDOW_TEXTS)))


def _windows(take: Callable[[], list[str]]) -> Iterator[Window]:
    offset = 0
    while window := take():
        yield Window(window, offset)
        offset += len(window)


def awindows(texts: Iterable[str] | AsyncIterable[str]) -> AsyncIterator[Window]:
    """Do as ``windows``, for texts that may be waited for."""
    check_texts(texts)
    return _awindows(texts)


async def _awindows(texts: Iterable[str] | AsyncIterable[str]) -> AsyncIterator[Window]:
    if not isinstance(texts, AsyncIterable):
        for window in windows(texts):
            yield window
        return
    gathered: list[str] = []
    offset = 0
    async for text in texts:
        gathered.append(text)
        if len(gathered) == WINDOW_TEXTS:
            yield Window(gathered, offset)
            offset += len(gathered)
            gathered = []
    if gathered:
        yield Window(gathered, offset)

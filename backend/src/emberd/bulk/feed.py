"""Chunks in, chunks with the outcomes of their rows out: the stream through what embeds."""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import chain
from typing import Any, Final

from emberd.bulk.units import CHUNK_ROWS, Chunk, RowError
from emberd.errors import TextError

Outcome = Any
"""What became of a row: its vector, ``(dimensions,)`` float32, or a ``RowError``."""

Embed = Callable[[Iterable[str]], Iterator[Any]]
"""Yields the vector of each text in order, or the ``TextError`` of one that cannot be embedded."""

# From this many texts on, a call of ``Embed`` continues to the end of the input: what it reads
# ahead is not more than that.
_UNLIMITED_TEXTS: Final = 16_384
# The first texts may be short or cached, and say little about the speed of later ones.
_GROWTH: Final = 8
_MIN_S: Final = 1e-6

# Rows without a text wait for the next row that has one; at most this many.
_MAX_WAITING_ERRORS: Final = 65_536
# Rows with a text wait for its vector; at most about this many bytes of them.
_MAX_WAITING_BYTES: Final = 64 << 20
_END: Final = object()

_NUMBERED_TEXT: Final = re.compile(r"\b([Tt])ext \d+\b")


def embed_chunks(
    chunks: Iterable[Chunk], embed: Embed, save_every_s: float
) -> Iterator[tuple[Chunk, list[Outcome]]]:
    """Yield each chunk with the outcomes of its rows, in order.

    ``embed`` reads texts ahead, and their chunks wait for the vectors. It is called several times
    if it would otherwise read more than a slow server embeds in ``save_every_s`` seconds.
    """
    waiting = _WaitingChunks(iter(chunks))
    limit: float = CHUNK_ROWS if math.isfinite(save_every_s) else math.inf
    while not waiting.is_exhausted:
        begin_s = time.monotonic()
        with closing(embed(waiting.take_texts(limit))) as outcomes:  # type: ignore[type-var]
            yield from waiting.drain(outcomes)
        limit = _next_limit(limit, waiting.taken, time.monotonic() - begin_s, save_every_s)


def _next_limit(limit: float, taken: int, seconds: float, save_every_s: float) -> float:
    """Return how many texts the next call may read: what can be saved in time, or all."""
    wanted = save_every_s * taken / max(seconds, _MIN_S)
    if wanted >= _UNLIMITED_TEXTS and limit >= _UNLIMITED_TEXTS / _GROWTH:
        return math.inf
    return min(limit * _GROWTH, max(CHUNK_ROWS, wanted))


class _WaitingChunks:
    """Chunks whose texts were read and whose outcomes are not complete."""

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        self.is_exhausted = False
        self.taken = 0
        self._chunks = chunks
        self._waiting: deque[Chunk] = deque()
        self._outcomes: list[Outcome] = []
        # Two counters: texts may be read in another thread than the one that receives vectors.
        self._bytes_taken = self._bytes_returned = 0

    def take_texts(self, limit: float) -> Iterator[str]:
        """Yield the texts of the next chunks, about ``limit``.

        Fewer if many rows have no text, or if the waiting rows are large.
        """
        errors = self.taken = 0
        for chunk in self._chunks:
            self._waiting.append(chunk)
            texts = [text for text in chunk.texts if not isinstance(text, RowError)]
            errors += len(chunk.texts) - len(texts)
            self.taken += len(texts)
            self._bytes_taken += chunk.rows.nbytes
            yield from texts
            waiting_bytes = self._bytes_taken - self._bytes_returned
            if (
                errors >= _MAX_WAITING_ERRORS
                or self.taken >= limit
                or waiting_bytes >= _MAX_WAITING_BYTES
            ):
                return
        self.is_exhausted = True

    def drain(self, outcomes: Iterator[Outcome]) -> Iterator[tuple[Chunk, list[Outcome]]]:
        """Yield the chunks that ``outcomes`` completes."""
        for outcome in chain(outcomes, [_END]):
            yield from self._complete()
            if outcome is _END:
                break
            self._outcomes.append(
                _row_error(outcome) if isinstance(outcome, TextError) else outcome
            )
            yield from self._complete()
        if self._waiting:
            raise RuntimeError("fewer vectors were returned than there were texts")

    def _complete(self) -> Iterator[tuple[Chunk, list[Outcome]]]:
        while self._waiting:
            chunk, outcomes = self._waiting[0], self._outcomes
            while len(outcomes) < len(chunk.texts):
                text = chunk.texts[len(outcomes)]
                if not isinstance(text, RowError):
                    return
                outcomes.append(text)
            self._waiting.popleft()
            self._outcomes = []
            self._bytes_returned += chunk.rows.nbytes
            yield chunk, outcomes


def _row_error(error: TextError) -> RowError:
    # The number counts the texts of this call, which the user does not know.
    return RowError(_NUMBERED_TEXT.sub(r"\1he text", str(error)))

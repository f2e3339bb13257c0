"""Texts of chunks into whatever embeds, and what comes back beside the rows again."""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import chain
from typing import Any, Final

from emberd.bulk.rows import CHUNK_ROWS, Chunk, Flaw
from emberd.errors import TextError

Outcome = Any
"""A vector, ``(dimensions,)`` float32, or a Flaw."""

Embed = Callable[[Iterable[str]], Iterator[Any]]
"""Yields a vector a text, in order, or the TextError of a text that cannot be embedded."""

# From so many on, a call goes on to the end: what the client takes ahead is no more than that.
_ENDLESS: Final = 16_384
# The first texts may be short, or in a cache, and say little of those to come.
_GROWTH: Final = 8
_SHORTEST_S: Final = 1e-6

# Rows without a text wait for the next one that has one; so many at most.
_MOST_FLAWED: Final = 65_536
# And rows with one wait for its vector: about so many bytes of them.
_MOST_BYTES: Final = 64 << 20
_END: Final = object()
_NUMBERED: Final = re.compile(r"\b([Tt])ext \d+\b")


def embedded(
    chunks: Iterable[Chunk], embed: Embed, save_every_s: float
) -> Iterator[tuple[Chunk, list[Outcome]]]:
    """Yield each chunk with an outcome a row, in order.

    Texts are taken ahead of the vectors by as much as ``embed`` takes them, and chunks wait for
    so long. It is called again and again where it takes more than a slow server embeds in
    ``save_every_s`` seconds.
    """
    feed = _Feed(iter(chunks))
    most: float = CHUNK_ROWS
    while not feed.ended:
        began_s = time.monotonic()
        with closing(embed(feed.texts(most))) as outcomes:  # type: ignore[type-var]
            yield from feed.met(outcomes)
        most = _next_most(most, feed.taken, time.monotonic() - began_s, save_every_s)


def _next_most(most: float, taken: int, seconds: float, save_every_s: float) -> float:
    """Return how many texts the next call may take: what can be saved in time, or any number."""
    wanted = save_every_s * taken / max(seconds, _SHORTEST_S)
    if wanted >= _ENDLESS and most >= _ENDLESS / _GROWTH:
        return math.inf
    return min(most * _GROWTH, max(CHUNK_ROWS, wanted))


class _Feed:
    """The chunks whose texts were taken and whose outcomes are not all there."""

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        self.ended = False
        self.taken = 0
        self._chunks = chunks
        self._waiting: deque[Chunk] = deque()
        self._outcomes: list[Outcome] = []
        # Counted apart: texts may be taken in another thread than vectors come in.
        self._bytes_taken = self._bytes_given = 0

    def texts(self, most: float) -> Iterator[str]:
        """Yield the texts of the next chunks, about ``most``.

        Fewer where many rows have none, or where those that wait are large.
        """
        flawed = self.taken = 0
        for chunk in self._chunks:
            self._waiting.append(chunk)
            texts = [text for text in chunk.texts if not isinstance(text, Flaw)]
            flawed += len(chunk.texts) - len(texts)
            self.taken += len(texts)
            self._bytes_taken += chunk.kept.nbytes
            yield from texts
            waiting = self._bytes_taken - self._bytes_given
            if flawed >= _MOST_FLAWED or self.taken >= most or waiting >= _MOST_BYTES:
                return
        self.ended = True

    def met(self, outcomes: Iterator[Outcome]) -> Iterator[tuple[Chunk, list[Outcome]]]:
        """Yield the chunks that are complete with what ``outcomes`` brings."""
        for outcome in chain(outcomes, [_END]):
            yield from self._complete()
            if outcome is _END:
                break
            self._outcomes.append(_flaw(outcome) if isinstance(outcome, TextError) else outcome)
            yield from self._complete()
        if self._waiting:
            raise RuntimeError("fewer vectors came back than there were texts")

    def _complete(self) -> Iterator[tuple[Chunk, list[Outcome]]]:
        while self._waiting:
            chunk, filled = self._waiting[0], self._outcomes
            while len(filled) < len(chunk.texts):
                text = chunk.texts[len(filled)]
                if not isinstance(text, Flaw):
                    return
                filled.append(text)
            self._waiting.popleft()
            self._outcomes = []
            self._bytes_given += chunk.kept.nbytes
            yield chunk, filled


def _flaw(error: TextError) -> Flaw:
    # Its number counts the texts of this run, of which the user knows nothing.
    told = _NUMBERED.sub(lambda found: f"{'The' if found[1] == 'T' else 'the'} text", str(error))
    return Flaw(told)

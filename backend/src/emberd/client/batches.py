"""How texts are divided: a stream into windows, and a window into batches.

A list is one window. A stream is read in windows of ``WINDOW_TEXTS``, each of which is a job.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final, NamedTuple

from emberd.client.inputs import PreparedTexts
from emberd.endpoint import Endpoint

# One server-side prefill: a longer request would only wait inside the server, and time out there.
BATCH_TOKENS: Final = 16_384
# Eight requests of these are in flight by default, and a slow server answers all of them at last.
_CPU_BATCH_TOKENS: Final = 2_048

WINDOW_TEXTS: Final = 1024
"""Texts are sorted by length within this many: enough to fill batches with texts of one length, and
few enough that progress goes through the caller's texts from front to back. Two windows fill as
many requests as are in flight by default."""

_BYTES_PER_TOKEN: Final = 4


class TextWindow(NamedTuple):
    """Texts of one job, and how many texts of the caller precede them."""

    texts: Iterable[str]
    offset: int


def windows(texts: Iterable[str]) -> Iterator[TextWindow]:
    """Yield ``texts`` in windows, taken as they are needed."""
    offset, remaining = 0, iter(texts)
    while window := list(islice(remaining, WINDOW_TEXTS)):
        yield TextWindow(window, offset)
        offset += len(window)


async def awindows(texts: Iterable[str] | AsyncIterable[str]) -> AsyncIterator[TextWindow]:
    """Do as ``windows``, also for texts from an asynchronous iterable."""
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


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Texts that are sent together, perhaps in one request with other batches.

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


def most_tokens(endpoint: Endpoint) -> int:
    """Return how many tokens a request to ``endpoint`` has at most, unless one text has more."""
    return _CPU_BATCH_TOKENS if endpoint.on_cpu else BATCH_TOKENS


def make_batches(
    prepared: PreparedTexts, batch_texts: int, batch_tokens: int = BATCH_TOKENS
) -> Iterator[Batch]:
    """Yield batches that hold every text once.

    Args:
        prepared: The texts.
        batch_texts: Most texts in a batch.
        batch_tokens: Most tokens in a batch of several texts.
    """
    sorted_count = max(batch_texts, WINDOW_TEXTS)
    for start in range(0, len(prepared.inputs), sorted_count):
        indices = range(start, min(start + sorted_count, len(prepared.inputs)))
        # Strings and token ids cannot be in one request. Both are found before the first batch is
        # sent: a text that then becomes token ids would be in two batches.
        for of_kind in [
            [
                (_tokens(prepared, index), index)
                for index in indices
                if isinstance(prepared.inputs[index], kind)
            ]
            for kind in (str, list)
        ]:
            # The longest first, so that no long one is left over at the end.
            of_kind.sort(key=lambda entry: -entry[0])
            batch: list[int] = []
            tokens = 0
            for more, index in of_kind:
                if batch and (len(batch) == batch_texts or tokens + more > batch_tokens):
                    yield Batch(tuple(batch), tokens)
                    batch, tokens = [], 0
                batch.append(index)
                tokens += more
            if batch:
                yield Batch(tuple(batch), tokens)


def _tokens(prepared: PreparedTexts, index: int) -> int:
    given = prepared.inputs[index]
    if isinstance(given, list):
        return len(given)
    return prepared.counted.get(index) or estimate_tokens(prepared.sizes[index])


def estimate_tokens(text_bytes: int) -> int:
    """Return about how many tokens a text of so many bytes has."""
    return text_bytes // _BYTES_PER_TOKEN + 1

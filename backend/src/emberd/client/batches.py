"""Which texts go together into one request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from emberd.client.texts import Prepared

# One server-side prefill: a longer request would only wait inside the server, and time out there.
BATCH_TOKENS: Final = 16_384
# Texts are sorted by length within so many: enough to fill batches with texts of one length, and
# few enough that progress goes through the caller's list from front to back.
WINDOW_TEXTS: Final = 2048
_BYTES_PER_TOKEN: Final = 4


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts that go in one request.

    Attributes:
        indices: Their places in the caller's list.
        tokens: About how many tokens they have together.
        deaths: How often the server died while it worked on them.
        alone: They may be what it died of, so nothing else is in flight with them.
    """

    indices: tuple[int, ...]
    tokens: int = 0
    deaths: int = 0
    alone: bool = False

    def halves(self, *, alone: bool) -> tuple[Batch, Batch]:
        """Return the two halves of a batch of at least two texts."""
        middle = len(self.indices) // 2
        tokens = self.tokens // 2
        return (
            replace(self, indices=self.indices[:middle], tokens=tokens, alone=alone),
            replace(self, indices=self.indices[middle:], tokens=tokens, alone=alone),
        )


def lay_out(prepared: Prepared, batch_texts: int) -> Iterator[Batch]:
    """Yield batches that hold every text once.

    Args:
        prepared: The texts.
        batch_texts: Most texts in a batch.
    """
    window = max(batch_texts, WINDOW_TEXTS)
    for start in range(0, len(prepared.inputs), window):
        indices = range(start, min(start + window, len(prepared.inputs)))
        # Strings and token ids cannot stand in one request.
        for kind in (str, list):
            of_kind = [index for index in indices if isinstance(prepared.inputs[index], kind)]
            # The longest first, so that no long one is left over at the end of the window.
            of_kind.sort(key=lambda index: _tokens(prepared, index), reverse=True)
            yield from _fill(prepared, of_kind, batch_texts)


def _fill(prepared: Prepared, indices: list[int], batch_texts: int) -> Iterator[Batch]:
    batch: list[int] = []
    tokens = 0
    for index in indices:
        more = _tokens(prepared, index)
        if batch and (len(batch) == batch_texts or tokens + more > BATCH_TOKENS):
            yield Batch(tuple(batch), tokens)
            batch, tokens = [], 0
        batch.append(index)
        tokens += more
    if batch:
        yield Batch(tuple(batch), tokens)


def _tokens(prepared: Prepared, index: int) -> int:
    given = prepared.inputs[index]
    return len(given) if isinstance(given, list) else prepared.sizes[index] // _BYTES_PER_TOKEN + 1

"""How many tokens the server read for a call.

A caller that wants to know counts within a context::

    with usage.counted() as used:
        vectors = embedder.embed_queries(texts)
    used.tokens

The count is not an argument of each call, because few callers need it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate
from typing import Final


@dataclass(slots=True)
class TokenUsage:
    """What the calls of one context used.

    Attributes:
        tokens: Tokens that servers said they read, template included; texts from a cache count
            none. Of a request that was shared with other calls, the part by length.
    """

    tokens: int = 0


_CURRENT: Final[ContextVar[TokenUsage | None]] = ContextVar("emberd_usage", default=None)


@contextmanager
def counted() -> Iterator[TokenUsage]:
    """Count what the calls in the block use; those of another thread or task are not counted."""
    used = TokenUsage()
    token = _CURRENT.set(used)
    try:
        yield used
    finally:
        _CURRENT.reset(token)


def current() -> TokenUsage:
    """Return what the present call counts on; nobody reads it if no caller counts."""
    return _CURRENT.get() or TokenUsage()


def divide(total: int | None, sizes: Sequence[int]) -> list[int | None]:
    """Return ``total`` in whole parts in proportion to ``sizes``; their sum is ``total``."""
    if total is None:
        return [None] * len(sizes)
    whole = sum(sizes) or 1
    ends = [total * size // whole for size in accumulate(sizes)]
    ends[-1] = total
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]

"""Vectors as lists of floats, where a framework wants lists."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from emberd.client.vectors import Floats

# A number takes about 20 ns, so that a turn takes a millisecond or two.
_NUMBERS_A_TURN: Final = 65_536
# Fewer lists than the garbage collector counts before it looks.
_FEW: Final = 500


def to_lists(vectors: Floats) -> list[list[float]]:
    """Return ``vectors``, ``(n, dimensions)``, as lists."""
    if len(vectors) < _FEW:
        return [row.tolist() for row in vectors]
    with _not_collected():
        return [row.tolist() for row in vectors]


async def ato_lists(vectors: Floats) -> list[list[float]]:
    """Return ``vectors``, ``(n, dimensions)``, as lists, with turns of the event loop in between.

    Five thousand vectors of 2,560 numbers take a third of a second, in which a loop would stand
    still.
    """
    rows_a_turn = max(1, _NUMBERS_A_TURN // max(1, vectors.shape[1]))
    lists: list[list[float]] = []
    for start in range(0, len(vectors), rows_a_turn):
        if start:
            await asyncio.sleep(0)
        lists.extend(to_lists(vectors[start : start + rows_a_turn]))
    return lists


@contextmanager
def _not_collected() -> Iterator[None]:
    """Have no garbage collected in this block, unless another thread sees to it.

    A collection goes through every number of every list made so far, several times in a large
    call, and finds nothing: lists of floats form no cycles.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()

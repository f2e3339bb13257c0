"""Vectors as lists of floats, where a framework wants lists."""

from __future__ import annotations

import asyncio
import ctypes
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from emberd.client.vectors import Floats

# A number takes about 20 ns, so that a turn takes a millisecond or two.
_NUMBERS_A_TURN: Final = 65_536

# CPython's own; it takes tuples and dictionaries of plain values off the list of what it collects.
_untrack = getattr(getattr(ctypes, "pythonapi", None), "PyObject_GC_UnTrack", None)
if _untrack is not None:
    _untrack.argtypes, _untrack.restype = [ctypes.py_object], None


def to_lists(vectors: Floats) -> list[list[float]]:
    """Return ``vectors``, ``(n, dimensions)``, as lists.

    The garbage collector does not look into them, as it would into each number of each list, again
    and again, also later in the life of the process, and for nothing: numbers form no cycles.
    """
    lists: list[list[float]] = []
    for row in vectors:
        numbers: list[float] = row.tolist()
        if _untrack is not None:
            _untrack(numbers)
        lists.append(numbers)
    return lists


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

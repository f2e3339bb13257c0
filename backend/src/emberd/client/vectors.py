"""Raw embeddings made into float32 vectors of norm one, and the cache that a client asks first."""

from __future__ import annotations

import asyncio
import ctypes
from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from emberd.catalog import is_unit
from emberd.client.wire import RawVector
from emberd.errors import BadReplyError

Floats = npt.NDArray[np.float32]

_FLOAT_BYTES: Final = 4
_ADVICE: Final = "No vector of this reply is used. The server computes wrongly: restart it."
# Converting a number takes about 20 ns, so one turn of the event loop takes 1 to 2 ms.
_NUMBERS_A_TURN: Final = 65_536

# CPython's own function, which it uses for tuples and dictionaries of plain values.
_untrack = getattr(getattr(ctypes, "pythonapi", None), "PyObject_GC_UnTrack", None)
if _untrack is not None:
    _untrack.argtypes, _untrack.restype = [ctypes.py_object], None


class KnownVectors(Protocol):
    """Native vectors of texts that were embedded before; used by several threads at once."""

    def recall(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.bool_], Floats]:
        """Look up the vectors of ``texts``, which are in their templates.

        Returns:
            Which of them are known, ``(len(texts),)``, and one row for each of those, in order.
        """

    def keep(self, texts: Sequence[str], vectors: Floats) -> None:
        """Store native vectors, ``(len(texts), native)``."""


def decode(
    raws: list[RawVector], native: int, wanted: int | None, *, cut_by_server: bool
) -> Floats:
    """Return the vectors of a reply.

    Args:
        raws: Embeddings as they came, in order.
        native: Length of a native vector.
        wanted: Length to cut to; None for native.
        cut_by_server: The server was asked to cut them.

    Returns:
        One row per text, ``(len(raws), wanted or native)``, each of norm one.

    Raises:
        BadReplyError: A wrong length, a number that is not finite, or a norm far from one.
    """
    shorter = wanted if cut_by_server else None
    rows = _rows(raws, native, shorter)
    norms = _norms(rows)
    is_good = is_unit(norms)
    if rows.shape[1] == shorter and shorter != native:
        # Some servers cut without normalising again, so a cut vector may be shorter than one.
        is_good |= (norms >= np.finfo(np.float32).tiny) & (norms <= 1)
    if not is_good.all():
        wrong = np.flatnonzero(~is_good)[0]
        raise BadReplyError(
            f"Vector {wrong} of the reply has norm {norms[wrong]:.4g} instead of 1. {_ADVICE}"
        )
    # Rounded to float32 before it is cut: so a vector that was kept whole and is cut later is the
    # same, to the bit, as one that is cut at once.
    units = _divide(rows, norms)
    return cut(units, wanted) if wanted is not None else units


def cut(units: Floats, dimensions: int) -> Floats:
    """Return the first ``dimensions`` columns of ``units``, normalised again.

    Raises:
        BadReplyError: The columns that are left are all zero, and so have no direction.
    """
    if dimensions == units.shape[1]:
        return units
    heads = units[:, :dimensions]
    norms = _norms(heads)
    if not norms.all():
        raise BadReplyError(
            f"Vector {np.flatnonzero(norms == 0)[0]} of the reply has only zeros in its "
            f"first {dimensions} dimensions, and cannot be cut to them. {_ADVICE}"
        )
    return _divide(heads, norms)


def _divide(rows: Floats, norms: npt.NDArray[np.float64]) -> Floats:
    """Return the rows divided by their norms: in double precision, and rounded once."""
    units = np.empty(rows.shape, np.float32)
    np.divide(rows, norms[:, None], out=units, casting="same_kind")
    return units


def _norms(rows: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    # Summed in double precision: NaN and infinity reach the norm, and squares never overflow.
    norms: npt.NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    if not np.isfinite(norms).all():
        bad = np.flatnonzero(~np.isfinite(norms))[0]
        raise BadReplyError(f"Vector {bad} of the reply holds NaN or infinity. {_ADVICE}")
    return norms


def _rows(raws: list[RawVector], native: int, shorter: int | None) -> Floats:
    lengths = {len(raw) // (_FLOAT_BYTES if isinstance(raw, bytes) else 1) for raw in raws}
    if len(lengths) != 1 or not lengths <= {native, shorter}:
        expected = f"{native}" if shorter in (None, native) else f"{shorter} or {native}"
        raise BadReplyError(
            f"The reply has vectors of {', '.join(map(str, sorted(lengths)))} dimensions instead "
            f"of {expected}. Check whether another model answers at this address."
        )
    if all(isinstance(raw, bytes) for raw in raws):
        return np.frombuffer(b"".join(raws), "<f4").reshape(len(raws), -1)  # type: ignore[arg-type]
    with np.errstate(over="ignore"):  # to infinity, which is refused later
        return np.stack(
            [
                np.frombuffer(raw, "<f4") if isinstance(raw, bytes) else np.array(raw, np.float32)
                for raw in raws
            ]
        )


def to_lists(vectors: Floats) -> list[list[float]]:
    """Return ``vectors``, ``(n, dimensions)``, as lists.

    The garbage collector does not track them: numbers form no cycles, and every collection of the
    process would otherwise visit each number of each list.
    """
    lists: list[list[float]] = []
    for row in vectors:
        numbers: list[float] = row.tolist()
        if _untrack is not None:
            _untrack(numbers)
        lists.append(numbers)
    return lists


async def ato_lists(vectors: Floats) -> list[list[float]]:
    """Return ``vectors``, ``(n, dimensions)``, as lists, and let the event loop run in between.

    Converting 5,000 vectors of 2,560 numbers at once would block the loop for a third of a second.
    """
    rows_a_turn = max(1, _NUMBERS_A_TURN // max(1, vectors.shape[1]))
    lists: list[list[float]] = []
    for start in range(0, len(vectors), rows_a_turn):
        if start:
            await asyncio.sleep(0)
        lists.extend(to_lists(vectors[start : start + rows_a_turn]))
    return lists

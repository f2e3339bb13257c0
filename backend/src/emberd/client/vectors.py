"""Raw embeddings made into float32 vectors of norm one, and the cache that a client asks first."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from emberd.catalog import is_unit
from emberd.client.event_loops import Steps, finish, in_slices
from emberd.errors import BadReplyError

Floats = npt.NDArray[np.float32]

_FLOAT_BYTES: Final = 4
_ADVICE: Final = "No vector of this reply is used. The server computes wrongly: restart it."
_NUMBERS_A_STEP: Final = 65_536

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
    raws: list[bytes], native: int, wanted: int | None, *, cut_by_server: bool
) -> Steps[Floats]:
    """Return the vectors of a reply.

    Args:
        raws: Embeddings as they came, in order: little-endian float32.
        native: Length of a native vector.
        wanted: Length to cut to; None for native.
        cut_by_server: The server was asked to cut them.

    Returns:
        One row per text, ``(len(raws), wanted or native)``, each of norm one.

    Raises:
        BadReplyError: A wrong length, a number that is not finite, or a norm far from one.
    """
    shorter = wanted if cut_by_server else None
    lengths = {len(raw) // _FLOAT_BYTES for raw in raws}
    if len(lengths) != 1 or not lengths <= {native, shorter}:
        expected = f"{native}" if shorter in (None, native) else f"{shorter} or {native}"
        raise BadReplyError(
            f"The reply has vectors of {', '.join(map(str, sorted(lengths)))} dimensions instead "
            f"of {expected}. Check whether another model answers at this address."
        )
    (length,) = lengths
    # Some servers cut without normalising again, so a cut vector may be shorter than one.
    may_be_short = length == shorter and shorter != native
    vectors = np.empty((len(raws), wanted or length), np.float32)
    for rows in _blocks(len(raws), length):
        given = np.frombuffer(b"".join(raws[rows]), "<f4").reshape(-1, length)
        norms = _norms(given, rows.start)
        is_good = is_unit(norms)
        if may_be_short:
            is_good |= (norms >= np.finfo(np.float32).tiny) & (norms <= 1)
        if not is_good.all():
            wrong = np.flatnonzero(~is_good)[0]
            raise BadReplyError(
                f"Vector {rows.start + wrong} of the reply has norm {norms[wrong]:.4g} instead of "
                f"1. {_ADVICE}"
            )
        # Rounded to float32 before it is cut: so a vector that was kept whole and is cut later is
        # the same, to the bit, as one that is cut at once.
        units = _divide(given, norms)
        vectors[rows] = units if wanted is None else _cut(units, wanted, rows.start)
        yield
    return vectors


def cut(units: Floats, dimensions: int) -> Steps[Floats]:
    """Return the first ``dimensions`` columns of ``units``, normalised again.

    Raises:
        BadReplyError: The columns that are left are all zero, and so have no direction.
    """
    if dimensions == units.shape[1]:
        return units
    heads = np.empty((len(units), dimensions), np.float32)
    for rows in _blocks(len(units), dimensions):
        heads[rows] = _cut(units[rows], dimensions, rows.start)
        yield
    return heads


def _blocks(count: int, length: int) -> Iterator[slice]:
    """Yield slices that divide ``count`` rows of ``length`` numbers into work of one step each."""
    size = max(1, _NUMBERS_A_STEP // max(1, length))
    return (slice(start, start + size) for start in range(0, count, size))


def _cut(units: Floats, dimensions: int, first: int) -> Floats:
    if dimensions == units.shape[1]:
        return units
    heads = units[:, :dimensions]
    norms = _norms(heads, first)
    if not norms.all():
        raise BadReplyError(
            f"Vector {first + np.flatnonzero(norms == 0)[0]} of the reply has only zeros in its "
            f"first {dimensions} dimensions, and cannot be cut to them. {_ADVICE}"
        )
    return _divide(heads, norms)


def _divide(rows: Floats, norms: npt.NDArray[np.float64]) -> Floats:
    """Return the rows divided by their norms: in double precision, and rounded once."""
    units = np.empty(rows.shape, np.float32)
    np.divide(rows, norms[:, None], out=units, casting="same_kind")
    return units


def _norms(rows: npt.NDArray[np.floating], first: int) -> npt.NDArray[np.float64]:
    # Summed in double precision: NaN and infinity reach the norm, and squares never overflow.
    norms: npt.NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    if not np.isfinite(norms).all():
        bad = first + np.flatnonzero(~np.isfinite(norms))[0]
        raise BadReplyError(f"Vector {bad} of the reply holds NaN or infinity. {_ADVICE}")
    return norms


def to_lists(vectors: Floats) -> list[list[float]]:
    """Return ``vectors``, ``(n, dimensions)``, as lists.

    The garbage collector does not track them: numbers form no cycles, and every collection of the
    process would otherwise visit each number of each list.
    """
    return finish(_lists(vectors))


async def ato_lists(vectors: Floats) -> list[list[float]]:
    """Return ``vectors``, ``(n, dimensions)``, as lists, and let the event loop run in between."""
    return await in_slices(_lists(vectors))


def _lists(vectors: Floats) -> Steps[list[list[float]]]:
    lists: list[list[float]] = []
    for row in vectors:
        numbers: list[float] = row.tolist()
        if _untrack is not None:
            _untrack(numbers)
        lists.append(numbers)
        yield
    return lists

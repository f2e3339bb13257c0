"""Embeddings as they came, made into float32 vectors of length exactly one."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from emberd.client.replies import Raw
from emberd.errors import BadReplyError

Floats = npt.NDArray[np.float32]

NORM_TOLERANCE: Final = 1e-2
"""How far from one a server's norms may be: normalising in bfloat16 is off by up to 6e-4."""

_FLOAT_BYTES: Final = 4
_ADVICE: Final = "No vector of this reply is used; the server computes wrongly, restart it."


def decode(raws: list[Raw], native: int, wanted: int | None, *, cut_by_server: bool) -> Floats:
    """Return the vectors of a reply.

    Args:
        raws: Embeddings as they came, in order.
        native: Length of a native vector.
        wanted: Length to cut to; None for native.
        cut_by_server: The server was asked to cut them.

    Returns:
        One row a text, ``(len(raws), wanted or native)``, each of norm one.

    Raises:
        BadReplyError: A wrong length, a number that is not finite, or a norm far from one.
    """
    shorter = wanted if cut_by_server else None
    rows = _rows(raws, native, shorter)
    norms = _norms(rows)
    was_cut = rows.shape[1] == shorter and shorter != native
    # Some servers cut without normalising again, so a cut vector may be shorter than one.
    lowest = np.finfo(np.float32).tiny if was_cut else 1 - NORM_TOLERANCE
    wrong = np.flatnonzero((norms < lowest) | (norms > 1 + NORM_TOLERANCE))
    if wrong.size:
        raise BadReplyError(
            f"Vector {wrong[0]} of the reply has norm {norms[wrong[0]]:.4g} instead of 1. {_ADVICE}"
        )
    # Rounded to float32 before it is cut: so a vector that was kept whole and is cut later is the
    # same, to the bit, as one that is cut at once.
    units = _divided(rows, norms)
    return cut(units, wanted) if wanted is not None else units


def cut(units: Floats, dimensions: int) -> Floats:
    """Return the first ``dimensions`` columns of ``units``, normalised again.

    Raises:
        BadReplyError: A head is all zeros, and so has no direction.
    """
    if dimensions == units.shape[1]:
        return units
    heads = units[:, :dimensions]
    norms = _norms(heads)
    if not norms.all():
        raise BadReplyError(
            f"Vector {np.flatnonzero(norms == 0)[0]} of the reply has nothing but zeros in its "
            f"first {dimensions} dimensions, and cannot be cut to them. {_ADVICE}"
        )
    return _divided(heads, norms)


def _divided(rows: Floats, norms: npt.NDArray[np.float64]) -> Floats:
    """Return the rows over their norms: divided in double precision, and rounded once."""
    units = np.empty(rows.shape, np.float32)
    np.divide(rows, norms[:, None], out=units, casting="same_kind")
    return units


def _norms(rows: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    # Summed in double precision: NaN and infinity come through to the norm, squares never do.
    norms: npt.NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    if not np.isfinite(norms).all():
        bad = np.flatnonzero(~np.isfinite(norms))[0]
        raise BadReplyError(f"Vector {bad} of the reply holds NaN or infinity. {_ADVICE}")
    return norms


def _rows(raws: list[Raw], native: int, shorter: int | None) -> Floats:
    lengths = {len(raw) // (_FLOAT_BYTES if isinstance(raw, bytes) else 1) for raw in raws}
    if len(lengths) != 1 or not lengths <= {native, shorter}:
        expected = f"{native}" if shorter in (None, native) else f"{shorter} or {native}"
        raise BadReplyError(
            f"The reply has vectors of {', '.join(map(str, sorted(lengths)))} dimensions instead "
            f"of {expected}. Look whether another model answers at this address."
        )
    if all(isinstance(raw, bytes) for raw in raws):
        return np.frombuffer(b"".join(raws), "<f4").reshape(len(raws), -1)  # type: ignore[arg-type]
    return np.stack([_numbers(raw, index) for index, raw in enumerate(raws)])


def _numbers(raw: Raw, index: int) -> Floats:
    if isinstance(raw, bytes):
        return np.frombuffer(raw, "<f4")
    try:
        with np.errstate(over="ignore"):  # to infinity, which is refused below
            row = np.asarray(raw, np.float64).astype(np.float32)
    except (TypeError, ValueError, OverflowError):
        row = np.empty((0, 0), np.float32)
    if row.ndim != 1:
        raise BadReplyError(f"Vector {index} of the reply is no list of numbers. {_ADVICE}")
    return row

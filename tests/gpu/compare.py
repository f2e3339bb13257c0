"""Vectors beside vectors."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpu.bench import Vectors

Wide = NDArray[np.float64]

_CLEARLY: Final = 1e-3  # two texts may be as near to each other as bfloat16 can tell


def units(vectors: Vectors) -> Wide:
    """Return vectors brought to norm one, as float64, (n, dimensions)."""
    wide = np.asarray(vectors, np.float64)
    brought: Wide = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    return brought


def cosines(some: Vectors, others: Vectors) -> Wide:
    """Return the cosine of each pair of rows, (n,)."""
    found: Wide = np.einsum("ij,ij->i", units(some), units(others))
    return found


def spread(some: Vectors, others: Vectors) -> dict[str, float]:
    """Return the least and the median cosine of pairs of rows."""
    found = cosines(some, others)
    return {"min": round(float(found.min()), 6), "median": round(float(np.median(found)), 6)}


def misplaced(some: Vectors, others: Vectors, most: int = 512) -> list[int]:
    """Return the rows of which another row of ``others`` is clearly nearer than their own.

    Args:
        some: Vectors, (n, dimensions).
        others: Vectors of the same texts.
        most: At most that many rows of ``some`` are looked at, evenly spread.
    """
    rows = np.unique(np.linspace(0, len(some) - 1, min(most, len(some))).astype(int))
    close = units(some[rows]) @ units(others).T
    own = close[np.arange(len(rows)), rows]
    return [int(row) for row in rows[close.max(axis=1) > own + _CLEARLY]]


def between(vectors: Vectors) -> dict[str, float]:
    """Return the median and the highest cosine between different rows."""
    close = units(vectors) @ units(vectors).T
    apart = close[~np.eye(len(close), dtype=bool)]
    return {"median": round(float(np.median(apart)), 4), "max": round(float(apart.max()), 6)}

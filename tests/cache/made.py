"""Vectors and keys by number, the same in every process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from emberd.cache import cache, open_cache
from emberd.cache.cache import Cache

Floats = npt.NDArray[np.float32]

DIMENSIONS: Final = 384
IDENTITY: Final = "tests"


def units(numbers: Iterable[int], dimensions: int = DIMENSIONS) -> Floats:
    """Return the unit vectors of these numbers, ``(len(numbers), dimensions)``."""
    rows = [np.random.default_rng(number).standard_normal(dimensions) for number in numbers]
    made = np.array(rows, np.float64).reshape(-1, dimensions)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made.astype(np.float32)


def keys(numbers: Iterable[int]) -> list[bytes]:
    """Return the keys of these numbers."""
    return cache.keys(IDENTITY, map(str, numbers))


def filled(url: str, numbers: Iterable[int], dimensions: int = DIMENSIONS) -> Cache:
    """Return a cache that has the vectors of these numbers, and no open file."""
    cache = open_cache(url)
    numbers = list(numbers)
    cache.put_many(keys(numbers), units(numbers, dimensions))
    cache.close()
    return cache


def right(cache: Cache, numbers: Iterable[int], dimensions: int = DIMENSIONS) -> int:
    """Return how many of these numbers the cache has; fail when a vector is another's."""
    numbers = list(numbers)
    found = cache.get_many(keys(numbers), dimensions)
    expected = units(numbers, dimensions)[found.mask]
    assert found.mask.shape == (len(numbers),)
    assert np.array_equal(found.vectors.reshape(expected.shape), expected)
    return int(found.mask.sum())

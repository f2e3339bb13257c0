"""What every cache does, and what it counts."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    # Imported for types alone: a constructor that looks at a URL needs no numpy.
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What a cache had of the keys it was asked for.

    Attributes:
        mask: Which keys were there, ``(len(keys),)``.
        vectors: Their vectors of length one in the order of the keys, ``(mask.sum(), native)``;
            ``(0, 0)`` where there is none.
    """

    mask: npt.NDArray[np.bool_]
    vectors: Floats


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What one cache object has seen, and how much its store holds.

    Attributes:
        hits: Keys that were found.
        misses: Keys that were not.
        healed: Records, or whole files, that did not check out and were thrown away.
        entries: Records in the store; None where it does not say.
        bytes: Space that they take; None where the store does not say.
    """

    hits: int
    misses: int
    healed: int
    entries: int | None = None
    bytes: int | None = None


class Cache(Protocol):
    """Vectors by key. Safe for threads; starts anew after a fork, and pickles as its URL."""

    def get_many(self, keys: Sequence[bytes], dimensions: int | None = None) -> Found:
        """Return what there is of ``keys``.

        Args:
            keys: From ``emberd.cache.keys``; the same one may stand there twice.
            dimensions: Length of a native vector: a record of another length is thrown away. Where
                it is not known, the first record that is found decides.
        """

    def put_many(self, keys: Sequence[bytes], vectors: Floats) -> None:
        """Keep vectors.

        Args:
            keys: One a vector.
            vectors: Of length one, ``(len(keys), native)``. Others are left out.

        Raises:
            ValueError: The shape is another.
        """

    def stats(self) -> CacheStats:
        """Return what this object has counted, and the store's size where it is known."""

    def close(self) -> None:
        """Let go of files and connections; the next use opens them again."""


class Counts:
    """Hits, misses and healings of one cache object, counted by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hits = self._misses = self._healed = 0

    def reset_after_fork(self) -> None:
        """Take a new lock: the old one may be held by a thread that the child does not have."""
        self._lock = threading.Lock()

    def add(self, *, hits: int = 0, misses: int = 0, healed: int = 0) -> None:
        """Add to the counts."""
        with self._lock:
            self._hits += hits
            self._misses += misses
            self._healed += healed

    def stats(self, entries: int | None = None, size: int | None = None) -> CacheStats:
        """Return the counts, with what the store says of itself."""
        with self._lock:
            return CacheStats(self._hits, self._misses, self._healed, entries, size)

"""What every cache does, and what it counts.

Doing without a store that is away: told once, and tried again after a pause.

Keys: what a vector depends on, as a short hash.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

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
            keys: From ``emberd.cache.base``; the same one may stand there twice.
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


PAUSE_S: Final = 10.0
"""How long a store that failed is left alone: less would slow every call down by its timeout."""

_LOG: Final = logging.getLogger("emberd")


class Absence:
    """Whether a store is to be left alone for now.

    Args:
        what: The store and what is done with it, for people: "Reading the cache at ...".
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._until: float | None = None
        self._is_told = False

    @property
    def lasts(self) -> bool:
        """Whether the store failed so lately that asking it again would only cost time."""
        return self._until is not None and time.monotonic() < self._until

    def begin(self, why: object, advice: str = "") -> None:
        """Note that the store failed; the first time of an absence is warned of."""
        self._until = time.monotonic() + PAUSE_S
        if not self._is_told:
            self._is_told = True
            _LOG.warning(
                "%s fails (%s). Vectors are computed without it; it is tried again every %.0f s.%s",
                self._what,
                why,
                PAUSE_S,
                f" {advice}" if advice else "",
            )

    def end(self) -> None:
        """Note that the store works: its next failure is warned of again."""
        self._until = None
        if self._is_told:
            self._is_told = False
            _LOG.warning("%s works again.", self._what)


SIZE: Final = 32
"""Bytes of a key: nobody makes two texts with the same one."""

_FORMAT: Final = b"emberd cache 1"
"""Another format of records or keys gets another number here, and never meets this one's."""


def key(identity: str, text: str) -> bytes:
    """Return the key of one text; see ``keys``."""
    return keys(identity, [text])[0]


def keys(identity: str, texts: Iterable[str]) -> list[bytes]:
    """Return the keys of texts.

    Args:
        identity: What decides the vector of a text besides the text: model, revision, precision.
        texts: As the model reads them, with their instructions.

    Returns:
        One key a text, each of ``SIZE`` bytes.
    """
    start = hashlib.blake2b(_framed(identity), digest_size=SIZE, person=_FORMAT)
    found = []
    for text in texts:
        hasher = start.copy()
        hasher.update(_framed(text))
        found.append(hasher.digest())
    return found


def _framed(text: str) -> bytes:
    # With its length before it, no end of one part can pass for the beginning of the next. Half
    # a surrogate pair is no Unicode, but Python's strings may hold one.
    raw = text.encode("utf-8", "surrogatepass")
    return len(raw).to_bytes(8, "little") + raw

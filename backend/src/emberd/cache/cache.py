"""What all caches share: keys, lookup and storage of checked records, counters, circuit breaker."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from emberd.cache.records import CachedVectors, Floats, decode, encode
from emberd.cache.urls import CacheUrl
from emberd.counters import CACHE_ERRORS, CACHE_HITS, CACHE_MISSES, COUNTERS
from emberd.system.fork import ForkAware

RETRY_AFTER_S: Final = 10.0
"""Pause after a failure of a store: a shorter one would add its timeout to every call."""

KEY_BYTES: Final = 32
"""Length of a key: long enough that no two texts share one."""

_KEY_FORMAT: Final = b"emberd cache 2"
"""Changed with the format of keys or records, and with what is sent for a text, so that entries of
two formats never mix. Up to 1, blank texts and special tokens had other vectors on some servers."""

_KEYS_AT_ONCE: Final = 500
"""Keys in one call of a store: their records are some megabytes, for which other processes wait,
and older versions of SQLite take up to 999 values in a statement."""

_LOG: Final = logging.getLogger("emberd")


def keys(identity: str, texts: Iterable[str]) -> list[bytes]:
    """Return the cache keys of ``texts``, each of ``KEY_BYTES`` bytes.

    Args:
        identity: What a vector depends on besides the text: model, revision, precision.
        texts: Texts in their prompt templates, as the model gets them.
    """
    start = hashlib.blake2b(_framed(identity), digest_size=KEY_BYTES, person=_KEY_FORMAT)
    found = []
    for text in texts:
        hasher = start.copy()
        hasher.update(_framed(text))
        found.append(hasher.digest())
    return found


def _framed(text: str) -> bytes:
    # The length comes first, so that the end of one part cannot be read as the start of the next.
    # A lone surrogate is not valid Unicode, but Python's strings may contain one.
    raw = text.encode("utf-8", "surrogatepass")
    return len(raw).to_bytes(8, "little") + raw


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What one cache object has counted, and the size of its store.

    Attributes:
        hits: Keys that were found.
        misses: Keys that were not found.
        recovered: Corrupt records that were removed.
        entries: Records in the store; None if the store does not report it.
        bytes: Size of the records; None if the store does not report it.
    """

    hits: int
    misses: int
    recovered: int
    entries: int | None = None
    bytes: int | None = None


class Cache(ForkAware, ABC):
    """Vectors by key. Thread-safe; reopened in a forked child; pickles as its URL.

    Subclasses call ``fork.register(self)`` at the end of their constructor.

    Args:
        location: The parsed URL.
    """

    def __init__(self, location: CacheUrl) -> None:
        self._location = location
        self._hits = self._misses = self._recovered = 0
        self._count_lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._location,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._location.url!r})"

    def get_many(self, keys: Sequence[bytes], dimensions: int | None = None) -> CachedVectors:
        """Return the vectors that are stored under ``keys``.

        Args:
            keys: From ``emberd.cache.cache.keys``; may contain a key twice.
            dimensions: Length of a native vector; records of another length are removed. If None,
                the first valid record decides.

        Raises:
            SettingError: The store's client library is not installed.
        """
        mask = np.zeros(len(keys), np.bool_)
        parts = []
        for first in range(0, len(keys), _KEYS_AT_ONCE):
            some = keys[first : first + _KEYS_AT_ONCE]
            found, corrupt = decode(some, self._read(some), self._location.dtype, dimensions)
            mask[first : first + _KEYS_AT_ONCE] = found.mask
            hits = len(found.vectors)
            if hits:
                parts.append(found.vectors)
                dimensions = found.vectors.shape[1]
            with self._count_lock:
                self._hits += hits
                self._misses += len(some) - hits
                self._recovered += len(corrupt)
            if corrupt:
                self._remove(corrupt)
        if len(parts) > 1:
            parts = [np.concatenate(parts)]
        return CachedVectors(mask, parts[0] if parts else np.empty((0, 0), np.float32))

    def put_many(self, keys: Sequence[bytes], vectors: Floats) -> None:
        """Store vectors; those that are not unit vectors are skipped.

        Args:
            keys: One for each vector.
            vectors: Native unit vectors, ``(len(keys), native)``.

        Raises:
            ValueError: ``vectors`` has another shape.
            SettingError: The store's client library is not installed.
        """
        if vectors.ndim != 2 or len(keys) != len(vectors):  # noqa: PLR2004 - texts by dimensions
            raise ValueError(
                f"expected vectors of shape ({len(keys)}, native) for {len(keys)} keys, "
                f"got {vectors.shape}"
            )
        for first in range(0, len(keys), _KEYS_AT_ONCE):
            some = slice(first, first + _KEYS_AT_ONCE)
            if records := encode(keys[some], vectors[some], self._location.dtype):
                self._write(records)

    def stats(self) -> CacheStats:
        """Return the counts of this object, and the size of the store if it is known."""
        with self._count_lock:
            return CacheStats(self._hits, self._misses, self._recovered)

    @abstractmethod
    def close(self) -> None:
        """Close files and connections; the next use opens them again."""

    @abstractmethod
    def _read(self, keys: Sequence[bytes]) -> Mapping[bytes, Any]:
        """Return the stored records of ``keys``; a missing one is absent or None."""

    @abstractmethod
    def _write(self, records: Mapping[bytes, bytes]) -> None:
        """Store records."""

    @abstractmethod
    def _remove(self, keys: Sequence[bytes]) -> None:
        """Remove the records of ``keys``."""

    def after_fork_in_child(self) -> None:
        """Replace the lock: another thread of the parent may have held it."""
        self._count_lock = threading.Lock()


class VectorCache:
    """The cache of one embedder: vectors by text, under keys that cover all that determines them.

    Implements ``emberd.client.vectors.KnownVectors``.

    Args:
        cache: Where the vectors are stored.
        identity: What determines the vector of a text, besides the text.
        dimensions: Length of native vectors; None if not known.
        model: The model, under which hits are counted for the process.
    """

    def __init__(
        self, cache: Cache, identity: str, dimensions: int | None, model: str = ""
    ) -> None:
        self.cache = cache
        self._model = model
        self._identity = identity
        self._dimensions = dimensions

    def recall(self, texts: Sequence[str]) -> CachedVectors:
        """Return which of ``texts``, in their templates, are cached, and the vectors of those."""
        found = self.cache.get_many(keys(self._identity, texts), self._dimensions)
        hits = len(found.vectors)
        COUNTERS.count(CACHE_HITS, self._model, by=hits)
        COUNTERS.count(CACHE_MISSES, self._model, by=len(texts) - hits)
        return found

    def keep(self, texts: Sequence[str], vectors: Floats) -> None:
        """Store native vectors, ``(len(texts), native)``."""
        self.cache.put_many(keys(self._identity, texts), vectors)


class CircuitBreaker:
    """Stops the use of a store for ``RETRY_AFTER_S`` seconds after each failure.

    A warning is logged for the first failure, and another one when the store works again.

    Args:
        action: What the breaker guards, as the start of a message: "Reading the cache at ...".
    """

    def __init__(self, action: str) -> None:
        self._action = action
        self._open_until: float | None = None
        self._has_warned = False

    @property
    def is_open(self) -> bool:
        """Whether the store failed less than ``RETRY_AFTER_S`` seconds ago."""
        return self._open_until is not None and time.monotonic() < self._open_until

    def record_failure(self, reason: object, advice: str = "") -> None:
        """Open the breaker after a failure."""
        self._open_until = time.monotonic() + RETRY_AFTER_S
        COUNTERS.count(CACHE_ERRORS)
        if not self._has_warned:
            self._has_warned = True
            _LOG.warning(
                "%s failed (%s). Vectors are computed without it; the next attempt is in %.0f s.%s",
                self._action,
                reason,
                RETRY_AFTER_S,
                f" {advice}" if advice else "",
            )

    def record_success(self) -> None:
        """Close the breaker."""
        self._open_until = None
        if self._has_warned:
            self._has_warned = False
            _LOG.warning("%s works again.", self._action)

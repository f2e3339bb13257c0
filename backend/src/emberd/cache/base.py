"""What all caches share: lookup and storage of checked records, keys, counters, circuit breaker."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from emberd.cache.urls import CacheUrl
from emberd.system.fork import ForkAware

if TYPE_CHECKING:
    # Imported for types only: a constructor that checks a URL needs no NumPy.
    import numpy as np
    import numpy.typing as npt

    from emberd.cache.records import CachedVectors, Reader

    Floats = npt.NDArray[np.float32]

RETRY_AFTER_S: Final = 10.0
"""Pause after a failure of a store: a shorter one would add its timeout to every call."""

KEY_BYTES: Final = 32
"""Length of a key: long enough that no two texts share one."""

_KEY_FORMAT: Final = b"emberd cache 1"
"""Changed with the format of keys or records, so that entries of two formats never mix."""

_LOG: Final = logging.getLogger("emberd")


# ---------------------------------------------------------------- keys


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


# ---------------------------------------------------------------- caches


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What one cache object has counted, and the size of its store.

    Attributes:
        hits: Keys that were found.
        misses: Keys that were not found.
        recovered: Corrupt records, or whole files, that were removed.
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
        self._counts: dict[str, int] = {"hits": 0, "misses": 0, "recovered": 0}
        self._count_lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._location,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._location.url!r})"

    def get_many(self, keys: Sequence[bytes], dimensions: int | None = None) -> CachedVectors:
        """Return the vectors that are stored under ``keys``.

        Args:
            keys: From ``emberd.cache.keys``; may contain a key twice.
            dimensions: Length of a native vector; records of another length are removed. If None,
                the first valid record decides.

        Raises:
            SettingError: The store's client library is not installed.
        """
        from emberd.cache.records import Reader

        reader = Reader(keys, self._location.dtype, dimensions)
        self._read(keys, reader)
        found = reader.found()
        hits = int(found.mask.sum())
        self._count(hits=hits, misses=len(keys) - hits, recovered=len(reader.corrupt))
        if reader.corrupt:
            self._remove(reader.corrupt)
        return found

    def put_many(self, keys: Sequence[bytes], vectors: Floats) -> None:
        """Store vectors; those that are not unit vectors are skipped.

        Args:
            keys: One for each vector.
            vectors: Native unit vectors, ``(len(keys), native)``.

        Raises:
            ValueError: ``vectors`` has another shape.
            SettingError: The store's client library is not installed.
        """
        from emberd.cache.records import encode

        records = encode(keys, vectors, self._location.dtype)
        if records:
            self._write(records)

    def stats(self) -> CacheStats:
        """Return the counts of this object, and the size of the store if it is known."""
        with self._count_lock:
            return CacheStats(**self._counts)

    @abstractmethod
    def close(self) -> None:
        """Close files and connections; the next use opens them again."""

    @abstractmethod
    def _read(self, keys: Sequence[bytes], reader: Reader) -> None:
        """Pass the stored records of ``keys`` to ``reader``."""

    @abstractmethod
    def _write(self, records: Mapping[bytes, bytes]) -> None:
        """Store records."""

    @abstractmethod
    def _remove(self, keys: Sequence[bytes]) -> None:
        """Remove the records of ``keys``."""

    def _count(self, **counted: int) -> None:
        with self._count_lock:
            for name, number in counted.items():
                self._counts[name] += number

    def after_fork_in_child(self) -> None:
        """Replace the lock: another thread of the parent may have held it."""
        self._count_lock = threading.Lock()


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

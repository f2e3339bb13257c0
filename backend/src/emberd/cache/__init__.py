"""Vectors that were computed before: kept in a file, in Redis or in Memcached.

The value is the native vector of a text as the model reads it, so an entry serves every
``dimensions``, and queries and documents never meet. A cache is a help and never a need: one that
is away, full or damaged is warned of and gone without, and a record that does not check out is
thrown away and counts as a miss.
"""

from __future__ import annotations

from emberd.cache.base import Cache, CacheStats, Found
from emberd.cache.keys import key, keys
from emberd.cache.opening import open_cache
from emberd.cache.urls import check

__all__ = ["Cache", "CacheStats", "Found", "check", "key", "keys", "open_cache"]

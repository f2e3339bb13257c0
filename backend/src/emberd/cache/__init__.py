"""Vectors that were computed before: kept in a file, in Redis or in Memcached.

The value is the native vector of a text as the model reads it, so an entry serves every
``dimensions``, and queries and documents never meet. A cache is a help and never a need: one that
is away, full or damaged is warned of and gone without, and a record that does not check out is
thrown away and counts as a miss.
"""

from __future__ import annotations

from emberd.cache import urls
from emberd.cache.base import Cache, CacheStats, Found, key, keys
from emberd.cache.urls import check

__all__ = ["Cache", "CacheStats", "Found", "check", "key", "keys", "open_cache"]


def open_cache(url: str) -> Cache:
    """Return the cache that ``url`` names. Nothing is read or connected until it is first used.

    Args:
        url: ``sqlite`` (a file in emberd's home), ``sqlite:///absolute/path.db``,
            ``redis://host:port/0``, ``rediss://host:port/0`` or
            ``memcached://host:port,host:port``. After a ``?``: ``dtype=float16``;
            ``max_bytes=20GB`` for a file; ``ttl=30d`` for a server.

    Raises:
        SettingError: It cannot be used.
    """
    place = urls.parse(url)
    # Imported late: each kind brings what the others do not need.
    if place.scheme == urls.SQLITE:
        from emberd.cache.sqlite import SqliteCache

        return SqliteCache(place)
    from emberd.cache.remote import RemoteCache

    return RemoteCache(place)

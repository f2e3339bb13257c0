"""The cache of vectors: an SQLite file, Redis or Memcached.

The value is the native vector of a text in its prompt template, so one entry serves every
``dimensions``, and queries and documents have separate entries. The cache is best effort: if it is
unavailable, full or corrupt, a warning is logged and embedding continues. A record that fails its
checks is removed and counts as a miss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emberd.cache import urls

if TYPE_CHECKING:
    # Imported for types only: an embedder that checks a URL needs no NumPy.
    from emberd.cache.cache import Cache


def open_cache(url: str) -> Cache:
    """Return the cache at ``url``. Files and connections are opened at first use.

    Args:
        url: ``sqlite`` (a file in emberd's home), ``sqlite:///absolute/path.db``,
            ``redis://host:port/0``, ``rediss://host:port/0`` or
            ``memcached://host:port,host:port``. Options after a ``?``: ``dtype=float16``;
            ``max_bytes=20GB`` for a file; ``ttl=30d`` for a server.

    Raises:
        SettingError: The URL is invalid.
    """
    location = urls.parse(url)
    # Imported late: each kind has dependencies that the other does not need.
    if location.scheme == urls.SQLITE:
        from emberd.cache.sqlite import SqliteCache

        return SqliteCache(location)
    from emberd.cache.remote import RemoteCache

    return RemoteCache(location)

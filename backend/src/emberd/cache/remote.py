"""The cache in servers: what Redis and Memcached have in common.

A server that is away is gone without; of several, the others go on.

One Redis server, or another that speaks its protocol.

One Memcached server.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from emberd.cache import records
from emberd.cache.base import Absence, CacheStats, Counts, Found
from emberd.cache.records import Floats
from emberd.cache.urls import MEMCACHED, PASSWORD_VARIABLE, USER_VARIABLE, Place
from emberd.errors import SettingError
from emberd.system import fork
from emberd.system.fork import ForkAware

TIMEOUT_S: Final = 1.0
"""How long a server may take to connect or to go on with an answer."""

_PREFIX: Final = b"emberd:"
_AT_ONCE: Final = 500
"""Records in one request: some megabytes."""


class Store(Protocol):
    """One server, by the names of its entries; its methods raise what its client raises."""

    def fetch(self, names: Sequence[bytes]) -> Sequence[Any]:
        """Return the records of ``names`` in their order; None where there is none."""

    def save(self, found: Mapping[bytes, bytes]) -> None:
        """Keep records."""

    def remove(self, names: Sequence[bytes]) -> None:
        """Throw records away."""

    def close(self) -> None:
        """End the connections."""


class RemoteCache(ForkAware):
    """A cache in one or more servers, each of which has a share of the keys.

    Args:
        place: What its URL says.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._counts = Counts()
        self._servers = [_Server(place, host, port) for host, port in place.servers]
        fork.register(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._place,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._place.url!r})"

    def get_many(self, keys: Sequence[bytes], dimensions: int | None = None) -> Found:
        """Return what there is of ``keys``; see ``Cache``.

        Raises:
            SettingError: The server's client library is not installed.
        """
        reader = records.Reader(keys, self._place.dtype, dimensions)
        for first in range(0, len(keys), _AT_ONCE):
            some = keys[first : first + _AT_ONCE]
            reader.take(first, map(self._fetch(some).get, some))
        found = reader.found()
        hits = int(found.mask.sum())
        self._counts.add(hits=hits, misses=len(keys) - hits, healed=len(reader.bad))
        for server, share in self._shares(reader.bad):
            server.remove(share)
        return found

    def put_many(self, keys: Sequence[bytes], vectors: Floats) -> None:
        """Keep vectors; see ``Cache``.

        Raises:
            SettingError: The server's client library is not installed.
        """
        made = records.encode(keys, vectors, self._place.dtype)
        wanted = list(made)
        for first in range(0, len(wanted), _AT_ONCE):
            for server, share in self._shares(wanted[first : first + _AT_ONCE]):
                server.save({key: made[key] for key in share})

    def stats(self) -> CacheStats:
        """Return the counts; what a server holds is not ours alone, so it is not told."""
        return self._counts.stats()

    def close(self) -> None:
        """End all connections; the next use makes new ones."""
        for server in self._servers:
            server.close()

    def _fetch(self, keys: Sequence[bytes]) -> dict[bytes, Any]:
        found: dict[bytes, Any] = {}
        for server, share in self._shares(keys):
            found.update(zip(share, server.fetch(share), strict=False))
        return found

    def _shares(self, keys: Sequence[bytes]) -> list[tuple[_Server, list[bytes]]]:
        # A key is a hash already: its first bytes spread keys evenly.
        count = len(self._servers)
        shares: list[list[bytes]] = [[] for _ in self._servers]
        for key in keys:
            shares[int.from_bytes(key[:8], "big") % count if count > 1 else 0].append(key)
        return [pair for pair in zip(self._servers, shares, strict=True) if pair[1]]

    def after_fork_in_child(self) -> None:
        """Begin without connections."""
        self._counts.reset_after_fork()
        for server in self._servers:
            server.reset_after_fork()


class _Server:
    """One server: its client, made at first use, and whether it is away."""

    def __init__(self, place: Place, host: str, port: int) -> None:
        name = f"the cache at {place.scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        self._place, self._host, self._port = place, host, port
        self._reading, self._writing = Absence(f"Reading {name}"), Absence(f"Writing to {name}")
        self._lock = threading.Lock()
        self._store: Store | None = None

    def fetch(self, keys: Sequence[bytes]) -> Sequence[Any]:
        """Return the records of ``keys``; nothing when the server is away."""
        found: list[Any] = []
        self._use(self._reading, lambda store: found.extend(store.fetch(_names(keys))))
        return found

    def save(self, made: Mapping[bytes, bytes]) -> None:
        """Keep records."""
        named = dict(zip(_names(list(made)), made.values(), strict=True))
        self._use(self._writing, lambda store: store.save(named))

    def remove(self, keys: Sequence[bytes]) -> None:
        """Throw records away."""
        self._use(self._writing, lambda store: store.remove(_names(keys)))

    def close(self) -> None:
        """End the connections."""
        with self._lock:
            store, self._store = self._store, None
        if store is not None:
            self._at_end()

    def reset_after_fork(self) -> None:
        """Leave the connections, and a lock that may be held, to the parent."""
        if self._store is not None:
            self._at_end.detach()
            fork.keep_inherited(self._store)
        self._store, self._lock = None, threading.Lock()

    def _use(self, absence: Absence, work: Callable[[Store], object]) -> None:
        if absence.lasts:
            return
        store = self._opened()
        try:
            work(store)
        # When what answers is no such server, clients raise anything: AttributeError, for one.
        except Exception as error:  # noqa: BLE001
            absence.begin(f"{type(error).__name__}: {error}")
        else:
            absence.end()

    def _opened(self) -> Store:
        with self._lock:
            if self._store is None:
                self._store = _open(self._place, self._host, self._port)
                self._at_end = weakref.finalize(self, self._store.close)
            return self._store


def _open(place: Place, host: str, port: int) -> Store:
    # Imported late: each brings its own client library.
    if place.scheme == MEMCACHED:
        return MemcachedStore(host, port, place.ttl_s, TIMEOUT_S)

    return RedisStore(place, host, port, TIMEOUT_S)


def _names(keys: Sequence[bytes]) -> list[bytes]:
    # Memcached takes printable names only; in both, a name can be typed.
    return [_PREFIX + key.hex().encode() for key in keys]


class RedisStore:
    """The server through redis-py, whose pool of connections threads share.

    Args:
        place: Its database, and how long entries live.
        host: Its name or address.
        port: Its port.
        timeout_s: How long it may take to connect, and to go on with an answer.

    Raises:
        SettingError: redis-py is not installed.
    """

    def __init__(self, place: Place, host: str, port: int, timeout_s: float) -> None:
        try:
            from redis import Redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as error:
            raise SettingError(
                f"cache={place.url!r} needs redis-py, which is not installed. "
                f"Run: pip install 'emberd[redis]'"
            ) from error
        self._ttl_s = place.ttl_s
        self._client: Any = Redis(
            host=host,
            port=port,
            db=place.database,
            username=os.environ.get(USER_VARIABLE) or None,
            password=os.environ.get(PASSWORD_VARIABLE) or None,
            ssl=place.scheme == "rediss",
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            # Once: a connection of the pool may be one that a restarted server has forgotten.
            retry=Retry(NoBackoff(), 1),
        )

    def fetch(self, names: Sequence[bytes]) -> Sequence[Any]:
        """Return the records of ``names`` in their order; None where there is none."""
        found: Sequence[Any] = self._client.mget(names)
        return found

    def save(self, found: Mapping[bytes, bytes]) -> None:
        """Keep records."""
        pipeline = self._client.pipeline(transaction=False)
        for name, record in found.items():
            pipeline.set(name, record, ex=self._ttl_s)
        pipeline.execute()

    def remove(self, names: Sequence[bytes]) -> None:
        """Throw records away."""
        self._client.delete(*names)

    def close(self) -> None:
        """End the connections."""
        self._client.close()


_LONGEST_TTL_S: Final = 30 * 86400
"""Memcached reads larger numbers as a time of day."""
_ATTEMPTS: Final = 3


class MemcachedStore:
    """The server through pymemcache, whose pool of connections threads share.

    Args:
        host: Its name or address.
        port: Its port.
        ttl_s: How long entries live; None for when it needs the room.
        timeout_s: How long it may take to connect, and to go on with an answer.

    Raises:
        SettingError: pymemcache is not installed.
    """

    def __init__(self, host: str, port: int, ttl_s: int | None, timeout_s: float) -> None:
        try:
            from pymemcache.client.base import PooledClient
            from pymemcache.client.retrying import RetryingClient
            from pymemcache.exceptions import MemcacheUnexpectedCloseError
        except ImportError as error:
            raise SettingError(
                "A cache in Memcached needs pymemcache, which is not installed. "
                "Run: pip install 'emberd[memcached]'"
            ) from error
        self._ttl_s = ttl_s
        client = PooledClient(
            (host, port),
            connect_timeout=timeout_s,
            timeout=timeout_s,
            no_delay=True,
            # Answers are waited for: a refusal that nobody reads would stand before the next.
            default_noreply=False,
        )
        # Connections of the pool may be ones that a restarted server has forgotten.
        forgotten = [MemcacheUnexpectedCloseError, ConnectionError]
        self._client: Any = RetryingClient(client, attempts=_ATTEMPTS, retry_for=forgotten)

    def fetch(self, names: Sequence[bytes]) -> Sequence[Any]:
        """Return the records of ``names`` in their order; None where there is none."""
        found: dict[bytes, Any] = self._client.get_many(names)
        return [found.get(name) for name in names]

    def save(self, found: Mapping[bytes, bytes]) -> None:
        """Keep records."""
        self._client.set_many(found, expire=self._expire())

    def remove(self, names: Sequence[bytes]) -> None:
        """Throw records away."""
        self._client.delete_many(names)

    def close(self) -> None:
        """End the connections."""
        self._client.close()

    def _expire(self) -> int:
        if self._ttl_s is None:
            return 0
        return self._ttl_s if self._ttl_s <= _LONGEST_TTL_S else int(time.time()) + self._ttl_s

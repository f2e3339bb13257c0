"""The cache in Redis or Memcached. If one of several servers is down, the others are still used."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from emberd import env
from emberd.cache.cache import Cache, CircuitBreaker
from emberd.cache.urls import MEMCACHED, CacheUrl
from emberd.errors import SettingError
from emberd.system import fork

TIMEOUT_S: Final = 1.0
"""Limit for connecting to a server, and for each read of its answer."""

_PREFIX: Final = b"emberd:"
_LONGEST_TTL_S: Final = 30 * 86400
"""Memcached takes larger numbers for a time of day."""
_MEMCACHED_ATTEMPTS: Final = 3


class RemoteCache(Cache):
    """A cache in one or more servers, each of which holds a share of the keys."""

    def __init__(self, location: CacheUrl) -> None:
        super().__init__(location)
        self._servers = [_Server(location, host, port) for host, port in location.servers]
        fork.register(self)

    def close(self) -> None:
        """Close all connections; the next use makes new ones."""
        for server in self._servers:
            server.close()

    def _read(self, keys: Sequence[bytes]) -> Mapping[bytes, Any]:
        found: dict[bytes, Any] = {}
        for server, share in self._shares(keys):
            found.update(server.fetch(share))
        return found

    def _write(self, records: Mapping[bytes, bytes]) -> None:
        for server, share in self._shares(records):
            server.save({key: records[key] for key in share})

    def _remove(self, keys: Sequence[bytes]) -> None:
        for server, share in self._shares(keys):
            server.remove(share)

    def _shares(self, keys: Iterable[bytes]) -> Iterable[tuple[_Server, list[bytes]]]:
        # A key is a hash, so its first bytes are evenly distributed.
        shares: dict[_Server, list[bytes]] = {}
        for key in keys:
            server = self._servers[int.from_bytes(key[:8], "big") % len(self._servers)]
            shares.setdefault(server, []).append(key)
        return shares.items()

    def after_fork_in_child(self) -> None:
        """Leave the connections to the parent."""
        super().after_fork_in_child()
        for server in self._servers:
            server.reset_after_fork()


class _Server:
    """One server: its client, created at first use, and its circuit breakers."""

    def __init__(self, location: CacheUrl, host: str, port: int) -> None:
        name = f"the cache at {location.scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        self._location, self._host, self._port = location, host, port
        self._reading = CircuitBreaker(f"Reading {name}")
        self._writing = CircuitBreaker(f"Writing to {name}")
        self._lock = threading.Lock()
        self._client: Any = None

    def fetch(self, keys: Sequence[bytes]) -> Mapping[bytes, Any]:
        """Return the records of ``keys``; empty if the server is down."""
        names = _names(keys)

        def get(client: Any) -> dict[bytes, Any]:
            found = client.get_many(names)
            return {key: found.get(name) for key, name in zip(keys, names, strict=True)}

        return self._use(self._reading, get) or {}

    def save(self, records: Mapping[bytes, bytes]) -> None:
        """Store records."""
        named = dict(zip(_names(records), records.values(), strict=True))
        ttl_s = self._location.ttl_s
        expire = _expiry(ttl_s) if self._location.scheme == MEMCACHED else ttl_s
        self._use(self._writing, lambda client: client.set_many(named, expire))

    def remove(self, keys: Sequence[bytes]) -> None:
        """Remove the records of ``keys``."""
        self._use(self._writing, lambda client: client.delete_many(_names(keys)))

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            self._close_client()

    def reset_after_fork(self) -> None:
        """Leave the connections, and a lock that may be held, to the parent."""
        if self._client is not None:
            self._close_client.detach()
            fork.keep_inherited(self._client)
        self._client, self._lock = None, threading.Lock()

    def _use(self, breaker: CircuitBreaker, work: Callable[[Any], Any]) -> Any:
        """Return what ``work`` returns, called with the client; None if the server fails."""
        if breaker.is_open:
            return None
        with self._lock:
            if self._client is None:
                connect = _memcached if self._location.scheme == MEMCACHED else _RedisClient
                self._client = connect(self._location, self._host, self._port)
                self._close_client = weakref.finalize(self, self._client.close)
            client = self._client
        try:
            result = work(client)
        # If the port belongs to another kind of server, clients raise anything (AttributeError).
        except Exception as error:  # noqa: BLE001
            breaker.record_failure(f"{type(error).__name__}: {error}")
            return None
        breaker.record_success()
        return result


class _RedisClient:
    """A pool of connections to Redis, with those methods of a pymemcache client that are used."""

    def __init__(self, location: CacheUrl, host: str, port: int) -> None:
        try:
            from redis import Redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as error:
            raise _not_installed("redis", "redis-py") from error
        self._redis = Redis(
            host=host,
            port=port,
            db=location.database,
            username=env.text(env.CACHE_USER),
            password=env.text(env.CACHE_PASSWORD),
            ssl=location.scheme == "rediss",
            ssl_check_hostname=True,  # redis-py 5 and older do not by themselves
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            # One retry: a server that was restarted has closed the connections of the pool.
            retry=Retry(NoBackoff(), 1),
        )

    def get_many(self, names: Sequence[bytes]) -> dict[bytes, Any]:
        """Return the values of ``names``; None for a missing one."""
        values: Any = self._redis.mget(names)
        return dict(zip(names, values, strict=True))

    def set_many(self, values: Mapping[bytes, bytes], expire: int | None) -> None:
        """Store values for ``expire`` seconds."""
        pipeline = self._redis.pipeline(transaction=False)
        for name, value in values.items():
            pipeline.set(name, value, ex=expire)
        pipeline.execute()

    def delete_many(self, names: Sequence[bytes]) -> None:
        """Remove the values of ``names``."""
        self._redis.delete(*names)

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()


def _memcached(_: CacheUrl, host: str, port: int) -> Any:
    """Return a pool of connections to Memcached."""
    try:
        from pymemcache.client.base import PooledClient
        from pymemcache.client.retrying import RetryingClient
        from pymemcache.exceptions import MemcacheUnexpectedCloseError
    except ImportError as error:
        raise _not_installed("memcached", "pymemcache") from error
    client = PooledClient(
        (host, port),
        connect_timeout=TIMEOUT_S,
        timeout=TIMEOUT_S,
        no_delay=True,
        # Without waiting for replies, an unread error would be taken for the next reply.
        default_noreply=False,
    )
    # A server that was restarted has closed the connections of the pool.
    closed = [MemcacheUnexpectedCloseError, ConnectionError]
    return RetryingClient(client, attempts=_MEMCACHED_ATTEMPTS, retry_for=closed)


def _not_installed(kind: str, library: str) -> SettingError:
    return SettingError(
        f"A {kind} cache needs {library}, which is not installed. Run: pip install 'emberd[{kind}]'"
    )


def _expiry(ttl_s: int | None) -> int:
    """Return a time to live as Memcached takes it; 0 for no limit."""
    if ttl_s is None or ttl_s <= _LONGEST_TTL_S:
        return ttl_s or 0
    return int(time.time()) + ttl_s


def _names(keys: Iterable[bytes]) -> list[bytes]:
    # Memcached takes printable names only; hexadecimal ones can be typed in both.
    return [_PREFIX + key.hex().encode() for key in keys]

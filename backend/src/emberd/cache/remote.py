"""The cache in Redis or Memcached. If one of several servers is down, the others are still used."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from emberd import env
from emberd.cache.base import Cache, CircuitBreaker
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
        kind = _MemcachedServer if location.scheme == MEMCACHED else _RedisServer
        self._servers = [kind(location, host, port) for host, port in location.servers]
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

        def get(client: Any) -> dict[bytes, Any]:
            return dict(zip(keys, self._get(client, _names(keys)), strict=False))

        return self._use(self._reading, get) or {}

    def save(self, records: Mapping[bytes, bytes]) -> None:
        """Store records."""
        named = dict(zip(_names(records), records.values(), strict=True))
        self._use(self._writing, lambda client: self._set(client, named))

    def remove(self, keys: Sequence[bytes]) -> None:
        """Remove the records of ``keys``."""
        self._use(self._writing, lambda client: self._delete(client, _names(keys)))

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
                self._client = self._connect()
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

    # By kind of server; each method raises what its client library raises.

    def _connect(self) -> Any:
        """Return a client with a pool of connections that threads share.

        Raises:
            SettingError: The client library is not installed.
        """
        raise NotImplementedError

    def _get(self, client: Any, names: Sequence[bytes]) -> Sequence[Any]:
        raise NotImplementedError

    def _set(self, client: Any, records: Mapping[bytes, bytes]) -> None:
        raise NotImplementedError

    def _delete(self, client: Any, names: Sequence[bytes]) -> None:
        raise NotImplementedError


class _RedisServer(_Server):
    """A server that speaks the protocol of Redis, through redis-py."""

    def _connect(self) -> Any:
        try:
            from redis import Redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as error:
            raise _not_installed("redis", "redis-py") from error
        return Redis(
            host=self._host,
            port=self._port,
            db=self._location.database,
            username=env.text(env.CACHE_USER),
            password=env.text(env.CACHE_PASSWORD),
            ssl=self._location.scheme == "rediss",
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            # One retry: a server that was restarted has closed the connections of the pool.
            retry=Retry(NoBackoff(), 1),
        )

    def _get(self, client: Any, names: Sequence[bytes]) -> Sequence[Any]:
        found: Sequence[Any] = client.mget(names)
        return found

    def _set(self, client: Any, records: Mapping[bytes, bytes]) -> None:
        pipeline = client.pipeline(transaction=False)
        for name, record in records.items():
            pipeline.set(name, record, ex=self._location.ttl_s)
        pipeline.execute()

    def _delete(self, client: Any, names: Sequence[bytes]) -> None:
        client.delete(*names)


class _MemcachedServer(_Server):
    """A Memcached server, through pymemcache."""

    def _connect(self) -> Any:
        try:
            from pymemcache.client.base import PooledClient
            from pymemcache.client.retrying import RetryingClient
            from pymemcache.exceptions import MemcacheUnexpectedCloseError
        except ImportError as error:
            raise _not_installed("memcached", "pymemcache") from error
        client = PooledClient(
            (self._host, self._port),
            connect_timeout=TIMEOUT_S,
            timeout=TIMEOUT_S,
            no_delay=True,
            # Without waiting for replies, an unread error would be taken for the next reply.
            default_noreply=False,
        )
        # A server that was restarted has closed the connections of the pool.
        closed = [MemcacheUnexpectedCloseError, ConnectionError]
        return RetryingClient(client, attempts=_MEMCACHED_ATTEMPTS, retry_for=closed)

    def _get(self, client: Any, names: Sequence[bytes]) -> Sequence[Any]:
        found: dict[bytes, Any] = client.get_many(names)
        return [found.get(name) for name in names]

    def _set(self, client: Any, records: Mapping[bytes, bytes]) -> None:
        client.set_many(records, expire=_expiry(self._location.ttl_s))

    def _delete(self, client: Any, names: Sequence[bytes]) -> None:
        client.delete_many(names)


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

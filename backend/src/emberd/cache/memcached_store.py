"""One Memcached server."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from emberd.errors import SettingError

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

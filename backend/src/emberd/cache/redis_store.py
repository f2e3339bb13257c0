"""One Redis server, or another that speaks its protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from emberd import env
from emberd.cache.urls import Place
from emberd.errors import SettingError


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
            username=env.text(env.CACHE_USER),
            password=env.text(env.CACHE_PASSWORD),
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

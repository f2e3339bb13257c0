"""The connections of a server, bounded in number and in time.

Any user of the machine can connect. Connections that have not sent the key yet have a limit of
their own and little time; above the limit the oldest is closed. So they never take the place of
clients with the key, and the descriptors of the process suffice.

Nor do they take the processor from clients. They take turns: a connection is read once in its turn.
While a request with the key is being answered, there are pauses between the turns.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections import deque
from collections.abc import MutableMapping
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

# The name in the state of a request under which its connection is found.
STATE: Final = "connection"

_MOST_DESCRIPTORS: Final = 8192
_OTHER_DESCRIPTORS: Final = 128  # the encoder's files, the event loop, the listening socket
_MOST_CONNECTIONS: Final = 2048  # without the key, and again with it
_MOST_BACKLOG: Final = 512
_WITHOUT_KEY_S: Final = 30.0  # longer than a health probe takes
_CLIENT_S: Final = 105.0  # longer than idle connections are kept
_SWEEP_S: Final = 1.0
# A turn takes 0.5 to 1.5 ms, so the others have at most a fifth of a core beside busy clients.
_PAUSE_S: Final = 0.005


class Connections:
    """All open connections of one server. Lives on one event loop.

    Attributes:
        backlog: How many connections the event loop may accept before it handles one of them.
        limit: How many there may be that have not sent the key, and how many that have.
    """

    def __init__(self) -> None:
        soft = _raise_descriptor_limit()
        # asyncio accepts as many connections as this at a time, before it reports the first one.
        self.backlog = min(_MOST_BACKLOG, soft // 4)
        self.limit = max(1, min(_MOST_CONNECTIONS, (soft - self.backlog - _OTHER_DESCRIPTORS) // 2))
        # In the order of their last requests.
        self._without_key: dict[BoundedProtocol, None] = {}
        self._clients: dict[BoundedProtocol, None] = {}
        self._busy: set[BoundedProtocol] = set()
        self._turns: deque[BoundedProtocol] = deque()
        self._next_turn: asyncio.Handle | None = None
        self._sweep: asyncio.TimerHandle | None = None

    @property
    def count(self) -> int:
        """How many connections are open."""
        return len(self._without_key) + len(self._clients)

    def add(self, connection: BoundedProtocol) -> None:
        """Count a new connection; if there are too many without the key, the oldest is closed."""
        self._without_key[connection] = None
        if len(self._without_key) > self.limit:
            next(iter(self._without_key)).abort()
        if self._sweep is None:
            self._sweep = connection.loop.call_later(_SWEEP_S, self._close_late)

    def wait_for_turn(self, connection: BoundedProtocol) -> None:
        """Do not read from a connection without the key before its next turn."""
        if connection in self._without_key:
            connection.transport.pause_reading()
            self._turns.append(connection)
            if self._next_turn is None:
                self._next_turn = connection.loop.call_soon(self._give_turn)

    def _give_turn(self) -> None:
        self._next_turn = None
        while self._turns:
            connection = self._turns.popleft()
            if connection in self._without_key:
                connection.transport.resume_reading()
                pause_s = _PAUSE_S if self._busy else 0
                self._next_turn = connection.loop.call_later(pause_s, self._give_turn)
                return

    def answered(self, connection: BoundedProtocol) -> None:
        """Note that no request of a connection is being answered."""
        self._busy.discard(connection)

    def admit(self, connection: BoundedProtocol) -> bool:
        """Count a connection that has sent the key as a client's.

        If there are too many, the one that was idle for longest is closed.

        Returns:
            Whether it may be answered; not if there are too many and none is idle.
        """
        if connection not in self._without_key and connection not in self._clients:
            return True  # it is closed already
        if connection not in self._clients and len(self._clients) >= self.limit:
            idle = next((other for other in self._clients if not other.is_busy), None)
            if idle is None:
                return False
            idle.abort()
        self._without_key.pop(connection, None)
        self._clients.pop(connection, None)
        self._clients[connection] = None
        self._busy.add(connection)
        connection.transport.resume_reading()
        return True

    def remove(self, connection: BoundedProtocol) -> None:
        """Forget a connection that is closed."""
        self._busy.discard(connection)
        self._without_key.pop(connection, None)
        self._clients.pop(connection, None)

    def _close_late(self) -> None:
        now = time.monotonic()
        for connection in [*self._without_key]:
            if now - connection.since_s > _WITHOUT_KEY_S:
                connection.abort()
        for connection in [*self._clients]:
            if not connection.is_busy and now - connection.active_s(now) > _CLIENT_S:
                connection.abort()
        self._sweep = None
        if self._without_key or self._clients:
            self._sweep = asyncio.get_running_loop().call_later(_SWEEP_S, self._close_late)


class BoundedProtocol(H11Protocol):
    """A connection that counts among ``connections``, which a subclass sets.

    Attributes:
        since_s: When it was opened, or its last request was answered.
    """

    connections_of_server: Connections

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, {**app_state, STATE: self}, _loop)
        self.since_s = time.monotonic()
        self._unsent = 0

    @property
    def is_busy(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def active_s(self, now: float) -> float:
        """Return when it was last active; a client that reads a long reply is."""
        unsent = self.transport.get_write_buffer_size()
        if unsent != self._unsent:
            self._unsent, self.since_s = unsent, now
        return self.since_s

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count it."""
        super().connection_made(transport)
        self.connections_of_server.add(self)
        self.connections_of_server.wait_for_turn(self)

    def data_received(self, data: bytes) -> None:
        """Handle what was read."""
        super().data_received(data)
        self.connections_of_server.wait_for_turn(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self.connections_of_server.remove(self)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        self.since_s = time.monotonic()
        self.connections_of_server.answered(self)
        super().on_response_complete()

    def abort(self) -> None:
        """Close it at once, whatever is being received or sent."""
        self.connections_of_server.remove(self)
        self.transport.abort()


def admit(scope: MutableMapping[str, Any]) -> bool:
    """Note that the request of ``scope`` had the key; return whether it may be answered."""
    connection = scope.get("state", {}).get(STATE)
    if not isinstance(connection, BoundedProtocol):
        return True
    return connection.connections_of_server.admit(connection)


def _raise_descriptor_limit() -> int:
    """Return the limit of open descriptors, raised as far as is useful and allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    return _MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft

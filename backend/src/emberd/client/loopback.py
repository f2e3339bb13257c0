"""Sending from threads to a server of this machine, without TLS and without a proxy.

That is the usual case. ``http.client`` reads a large reply in few pieces, where the openai SDK and
httpx pass it through five layers in many.
"""

from __future__ import annotations

import http.client
import os
import select
import threading
import time
import weakref
from collections import deque
from typing import Final
from urllib.parse import urlsplit

import msgspec

from emberd.client.wire import Reply, Request, TransportError, check_encoding, too_large
from emberd.endpoint import Endpoint
from emberd.probe import is_loopback
from emberd.system import fork, listeners
from emberd.system.bounded_http import (
    BoundedConnection,
    Exchange,
    ReplyTooLargeError,
    bounded,
    read_body,
)

KEEP_IDLE_S: Final = 4.0
"""Servers on uvicorn close an idle connection after 5 s. Ours is closed before that, or a request
would meet a connection that is being closed."""

CONNECT_S: Final = 10.0
NO_KEY: Final = "EMPTY"
"""What clients of servers without a key send by convention; the SDK requires one."""


def suits(endpoint: Endpoint) -> bool:
    """Return whether a ``LoopbackSession`` can reach ``endpoint``."""
    here = is_loopback(endpoint.url) or endpoint.listener is not None
    return endpoint.url.startswith("http://") and here


class LoopbackSession(fork.ForkAware):
    """Connections to one endpoint, for any number of threads; as ``transport.Session``.

    Args:
        endpoint: Where they lead.
        timeout_s: How long one request may take, in seconds.
    """

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        parts = urlsplit(endpoint.url)
        self._address = (parts.hostname or "", parts.port or http.client.HTTP_PORT)
        self._prefix = parts.path
        self._listener = endpoint.listener
        self._headers = {
            "Accept": "application/json",
            "Content-Type": "application/json",
            "User-Agent": "emberd",
            "Authorization": f"Bearer {endpoint.api_key or NO_KEY}",
        }
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._idle: deque[_Connection] = deque()  # the latest used at the right
        self._all: weakref.WeakSet[_Connection] = weakref.WeakSet()
        weakref.finalize(self, _close_all, self._idle)
        fork.register(self)

    def send(self, request: Request, exchange: Exchange | None = None) -> Reply | TransportError:
        """Send ``request`` once and return what came of it.

        Args:
            request: The request.
            exchange: Bounds it, and can end it; None for one of the session's own.

        Raises:
            BadReplyError: The reply is too large, or compressed, which was not requested.
        """
        with bounded(exchange or self._timeout_s) as bound:
            try:
                connection = self._connection()
            except listeners.ListenerChangedError as error:
                return TransportError("changed", _text(error))
            except OSError as error:
                return TransportError("refused", _text(error))
            try:
                return self._exchange(connection, request, bound)
            except BaseException as error:
                connection.close()
                if isinstance(error, ReplyTooLargeError):
                    raise too_large(error) from None
                if isinstance(error, TimeoutError):
                    return TransportError("timeout", _text(error))
                if isinstance(error, OSError | http.client.HTTPException):
                    return TransportError("broken", _text(error))
                raise

    def send_here(self, request: Request, exchange: Exchange) -> Reply | TransportError:
        """Do as ``send``; as ``Session.send_here``."""
        return self.send(request, exchange)

    def after_fork_in_child(self) -> None:
        """Close the child's copies of the connections, and touch nothing else."""
        for connection in list(self._all):
            connection.leave()
        # Descriptors with these numbers may be others at the next fork.
        self._all = weakref.WeakSet()
        self._idle.clear()

    def _connection(self) -> _Connection:
        with self._lock:
            while self._idle:
                connection = self._idle.pop()
                if connection.is_usable():
                    return connection
                connection.close()
        connection = _Connection(*self._address, timeout=min(self._timeout_s, CONNECT_S))
        connection.connect()
        if self._listener is not None:
            try:
                listeners.check(connection.sock, self._listener)
            except OSError:
                connection.close()
                raise
        self._all.add(connection)
        return connection

    def _exchange(self, connection: _Connection, request: Request, exchange: Exchange) -> Reply:
        method, body = "GET", None
        if request.body is not None:
            method, body = "POST", msgspec.json.encode(request.body)
        connection.request(method, self._prefix + request.path, body, self._headers)
        response = connection.getresponse()
        try:
            check_encoding(response.status, response.headers.get("content-encoding"))
            content = read_body(response, request.most_bytes)
        except BaseException:
            response.close()  # it shares the socket, and lives as long as the error
            raise
        if response.will_close or not response.isclosed():
            connection.close()
        else:
            connection.used_s = time.monotonic()
            exchange.use(None)  # if it is cancelled from now on, the connection is another's
            with self._lock:
                self._idle.append(connection)
                while self._idle and self._idle[0].is_old():
                    self._idle.popleft().close()
        return Reply(response.status, content, response.headers.get("retry-after"))


class _Connection(BoundedConnection):
    auto_open = 0  # a connection that http.client opens by itself would not be checked
    used_s = 0.0

    def is_old(self) -> bool:
        """Return whether it was idle for so long that the server may be closing it."""
        return time.monotonic() - self.used_s > KEEP_IDLE_S

    def is_usable(self) -> bool:
        """Return whether it seems to be open still."""
        if self.sock is None or self.is_old():
            return False
        # Data that was not requested can only be the end of the connection.
        if not hasattr(select, "poll"):  # Windows, where select accepts any number
            return not select.select([self.sock], (), (), 0)[0]
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)

    def leave(self) -> None:
        """Close this process's copy of the socket, also while a reply is read from it."""
        inherited, self.sock = self.sock, None
        if inherited is not None:
            os.close(inherited.detach())


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _close_all(idle: deque[_Connection]) -> None:
    while idle:
        idle.pop().close()

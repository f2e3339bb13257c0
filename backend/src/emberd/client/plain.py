"""Sending to a server of this machine, where neither TLS nor a proxy stands in between.

That is the usual case, and all that the openai SDK has to offer for it is in the way: a large reply
goes through five layers of it and of httpx in pieces. ``http.client`` reads it in one.
"""

from __future__ import annotations

import http.client
import os
import select
import socket
import threading
import time
import weakref
from collections import deque
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from emberd.client import deadline
from emberd.client.protocol import Ask, Reply, Trouble
from emberd.endpoint import Endpoint
from emberd.errors import BadReplyError
from emberd.probe import is_loopback
from emberd.system import fork, listeners
from emberd.system.listeners import ListenerChangedError

KEEP_IDLE_S: Final = 4.0
"""Servers on uvicorn close an idle connection after 5 s. Ours is given up before, or a request
meets a connection that is being closed."""

CONNECT_S: Final = 10.0
NO_KEY: Final = "EMPTY"
"""What clients of servers without a key send by custom; the SDK refuses to go without any."""

_BARE: Final = ("", "identity")


def suits(endpoint: Endpoint) -> bool:
    """Return whether ``endpoint`` is reached so."""
    here = is_loopback(endpoint.url) or endpoint.listener is not None
    return endpoint.url.startswith("http://") and here


class PlainSession:
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

    def send(self, ask: Ask) -> Reply | Trouble:
        """Send ``ask`` once and return what came of it.

        Raises:
            BadReplyError: The answer is compressed, which was not requested.
        """
        with deadline.within(self._timeout_s):
            try:
                connection = self._connection()
            except ListenerChangedError as error:
                return Trouble("changed", _said(error))
            except OSError as error:
                return Trouble("refused", _said(error))
            try:
                reply = self._exchange(connection, ask)
            except TimeoutError as error:
                connection.close()
                return Trouble("timeout", _said(error))
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                return Trouble("broken", _said(error))
            except BaseException:
                connection.close()
                raise
        return reply

    def leave_to_parent(self) -> None:
        """Close the child's copies of the connections, and touch nothing else."""
        for connection in list(self._all):
            connection.leave()
        fork.keep_inherited(self)

    def _connection(self) -> _Connection:
        with self._lock:
            while self._idle:
                connection = self._idle.pop()
                if connection.is_fresh():
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

    def _exchange(self, connection: _Connection, ask: Ask) -> Reply:
        method, body = "GET", None
        if ask.body is not None:
            method, body = "POST", msgspec.json.encode(ask.body)
        connection.give_time()
        connection.request(method, self._prefix + ask.path, body, self._headers)
        response = connection.getresponse()
        content = response.read()
        packed = response.headers.get("content-encoding", "")
        if packed.casefold() not in _BARE and response.status == HTTPStatus.OK:
            raise BadReplyError(
                f"The reply cannot be unpacked ({packed} was not asked for). No vector of it is "
                f"used; look at what answers at this address, or which proxy stands before it."
            )
        if response.will_close:
            connection.close()
        else:
            self._put_back(connection)
        return Reply(response.status, content, response.headers.get("retry-after"))

    def _put_back(self, connection: _Connection) -> None:
        connection.used_s = time.monotonic()
        with self._lock:
            self._idle.append(connection)
            while self._idle and self._idle[0].is_old():
                self._idle.popleft().close()


class _Connection(http.client.HTTPConnection):
    """One whose reads keep to the deadline of the thread."""

    used_s = 0.0

    def connect(self) -> None:
        """Connect, with a socket that looks at the time before each read."""
        super().connect()
        given = self.sock
        self.sock = _Timed(given.family, given.type, given.proto, fileno=given.detach())

    def give_time(self) -> None:
        """Let writes take what is left."""
        self.sock.settimeout(deadline.left_s())

    def is_old(self) -> bool:
        """Return whether it was idle for so long that the server may be closing it."""
        return time.monotonic() - self.used_s > KEEP_IDLE_S

    def is_fresh(self) -> bool:
        """Return whether it is still open, as far as anybody can tell."""
        # What is there to read unasked is the end of the connection.
        return self.sock is not None and not self.is_old() and not _is_readable(self.sock)

    def leave(self) -> None:
        """Close this process's copy of the socket, also where a reply is being read from it."""
        if self.sock is not None:
            os.close(self.sock.detach())


class _Timed(socket.socket):
    """A timeout is one of a single read: a server that drips never runs into it."""

    def recv_into(self, *given: Any, **named: Any) -> int:
        self.settimeout(deadline.left_s())
        return super().recv_into(*given, **named)


def _is_readable(stream: socket.socket) -> bool:
    if not hasattr(select, "poll"):  # Windows, where select takes any number
        return bool(select.select([stream], (), (), 0)[0])
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    return bool(poll.poll(0))


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _close_all(idle: deque[_Connection]) -> None:
    while idle:
        idle.pop().close()

"""``http.client`` with one deadline for a whole exchange, and a bound on the size of a reply.

The timeout of a socket is that of a single read: a server that sends a byte a second never exceeds
it. So each read gets no more time than is left of the exchange, and an exchange inside another one
no more than is left of that. An exchange can be ended from another thread.

``http.client`` also believes the sizes that a server states: it allocates as much as the head
announces, and takes a negative chunk for "until the end". So a body is read in pieces.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Final

from emberd.system import background

PIECE_BYTES: Final = 1024 * 1024
ERROR_BYTES: Final = 1024 * 1024
"""Most that is read of a reply that reports an error; the rest would not be shown."""

_LOOK_UP_S: Final = 10.0

# Not a threading.local: greenlets of a program that gevent patched late would share it.
_CURRENT: Final[ContextVar[Exchange | None]] = ContextVar("exchange", default=None)


class ReplyTooLargeError(OSError):
    """A reply is larger than any right one."""


class Exchange:
    """A request and its reply: when it must be over, and how to end it before that.

    Args:
        seconds: How long it may take, in seconds, from now on; never longer than what is left of
            the exchange that this thread is in.
    """

    def __init__(self, seconds: float) -> None:
        outer = current()
        self._end_s = time.monotonic() + seconds
        if outer is not None:
            self._end_s = min(self._end_s, outer._end_s)
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_cancelled = False

    def left_s(self) -> float:
        """Return the seconds that are left.

        Raises:
            TimeoutError: None are, or it was cancelled.
        """
        left = self._end_s - time.monotonic()
        if left <= 0 or self._is_cancelled:
            raise TimeoutError("the answer came too slowly")
        return left

    def use(self, connection: socket.socket | None) -> None:
        """Set which connection it waits for now; None at its end."""
        with self._lock:
            self._socket = connection
        if connection is not None:
            self.left_s()  # cancelled in the meantime

    def cancel(self) -> None:
        """End it, from any thread: its connection is shut down, and nothing more is sent.

        A look-up of a name that has begun is not ended; it keeps to the deadline.
        """
        with self._lock:
            self._is_cancelled = True
            if self._socket is not None:
                # Not the method of a TLS socket, which takes the encryption away from the thread
                # that reads.
                with suppress(OSError):
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


@contextmanager
def bounded(given: Exchange | float) -> Iterator[Exchange]:
    """Bound what this thread asks of servers during the block, as ``Exchange`` does."""
    exchange = given if isinstance(given, Exchange) else Exchange(given)
    outer = _CURRENT.get()
    try:
        _CURRENT.set(exchange)
        yield exchange
    finally:
        # First: Ctrl-C may come at any moment, and an exchange that is left would bound all others.
        _CURRENT.set(outer)
        exchange.use(None)


def current() -> Exchange | None:
    """Return the exchange of this thread; None outside of one."""
    return _CURRENT.get()


class BoundedConnection(http.client.HTTPConnection):
    """A connection that keeps to the exchange of the thread."""

    sock: Any

    def connect(self) -> None:
        """Connect in the time that is left."""
        self._create_connection = _connect_in_time
        try:
            super().connect()
        except BaseException:
            self.close()  # a proxy may have been connected to
            raise

    def request(self, *given: Any, **named: Any) -> None:
        """Send a request in the time that is left."""
        if self.sock is not None:
            _begin(self.sock)
        super().request(*given, **named)


def _connect_in_time(address: tuple[str, int], timeout: float | None, *_: Any) -> socket.socket:
    """Connect to one address of a host after another, all in the time that is left."""
    error: OSError | None = None
    for found in look_up(*address):
        if (exchange := current()) is not None:
            left_s = exchange.left_s()
            timeout = left_s if timeout is None else min(timeout, left_s)
        sock = _BoundedSocket(*found[:3])
        try:
            if exchange is not None:
                exchange.use(sock)  # cancelling ends a connect too
            sock.settimeout(timeout)
            sock.connect((*found[4][:1], address[1], *found[4][2:]))
            _begin(sock)
            return sock
        except OSError as refused:
            sock.close()
            error = refused
        except BaseException:
            sock.close()
            raise
    raise error or OSError(f"{address[0]} has no address")


def look_up(host: str, port: int | None) -> list[Any]:
    """Return what ``socket.getaddrinfo`` returns, in the time that is left.

    A resolver waits for its servers for as long as it is configured to, and cannot be interrupted.

    Raises:
        OSError: It has no address, or none is known in time.
        UnicodeError: It is not a name.
    """
    with suppress(socket.gaierror):  # an address needs no thread, which an exiting Python refuses
        return socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)
    exchange = current()
    call = background.run(lambda: socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM), "look-up")
    try:
        return call.result(_LOOK_UP_S if exchange is None else exchange.left_s())
    except TimeoutError:
        raise TimeoutError(f"the name {host} was not resolved in time") from None


class _BoundedSocket(socket.socket):
    def recv_into(self, *given: Any, **named: Any) -> int:
        _begin(self)
        return super().recv_into(*given, **named)


class _BoundedTlsSocket(ssl.SSLSocket):
    def recv_into(self, *given: Any, **named: Any) -> int:
        _begin(self)
        return super().recv_into(*given, **named)


def tls_context() -> ssl.SSLContext:
    """Return a context whose connections keep to the exchange of the thread too."""
    context = ssl.create_default_context()
    context.sslsocket_class = _BoundedTlsSocket
    return context


def _begin(connection: socket.socket) -> None:
    """Give the next step on ``connection`` no more time than is left."""
    if (exchange := current()) is not None:
        exchange.use(connection)
        connection.settimeout(exchange.left_s())


class Body(list[bytes]):
    """The body of a reply, in pieces, as long as they are not too many.

    Of a reply that reports an error, only the beginning is kept.

    Args:
        most_bytes: Most bytes of a reply without an error.
        status: The status of the reply.
    """

    def __init__(self, most_bytes: int, status: int) -> None:
        super().__init__()
        self._is_error = status != http.client.OK
        self._most_bytes = ERROR_BYTES if self._is_error else most_bytes
        self._size = 0

    def has_room(self, size: int) -> bool:
        """Return whether ``size`` more bytes are not too many."""
        return self._size + size <= self._most_bytes

    def add(self, piece: bytes) -> bool:
        """Add a piece; return whether more are wanted.

        Raises:
            ReplyTooLargeError: It is too large.
        """
        fits = self.has_room(len(piece))
        self._size += len(piece)
        self.append(piece)
        if fits:
            return True
        if self._is_error:
            return False
        raise ReplyTooLargeError(
            f"the reply has more than {self._most_bytes} bytes, the most that a right one can have"
        )


def read_body(response: http.client.HTTPResponse, most_bytes: int) -> bytes:
    """Return the body of ``response``, or of an error the beginning.

    Raises:
        OSError: It breaks off, comes too slowly, or is larger than ``most_bytes``.
        HTTPException: It breaks off, or is not HTTP.
    """
    body = Body(most_bytes, response.status)
    # In one piece, because several would be copied into one. A status without content has a length
    # of zero, even if its body is in chunks.
    if response.length and not response.chunked and body.has_room(response.length):
        body.add(response.read(response.length))
    while piece := response.read1(PIECE_BYTES):
        if not body.add(piece):
            return b"".join(body)
    if response.length:  # read1() takes an early end for the end
        raise http.client.IncompleteRead(b"", response.length)
    response.close()
    return b"".join(body)

"""The connections of an HTTP client of httpx, whose own interface shows them only in traces.

Each is checked when it is made, reads in large pieces, keeps to the exchange of its thread, and is
closed in a forked child.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from emberd.system import fork, listeners
from emberd.system.bounded_http import current
from emberd.system.listeners import Listener, ListenerChangedError

READ_BYTES: Final = 128 * 1024
"""Most that is read from a connection at a time. httpcore asks for 64 KiB, and each read goes
through five layers of it and of httpx; twice as much halves that. Reads from 256 KiB on are slower
again, because the allocator takes them from the kernel each time and gives them back
(docs/performance.md has the figures)."""

_TCP: Final = "connection.connect_tcp.complete"
_SENDS: Final = ".send_"  # of http11 and http2: request headers, bodies, settings
# With any prefix: a proxy's connections have their own.
_CONNECTED: Final = (".connect_tcp.complete", ".start_tls.complete")

_REQUESTS: Final = (b"POST ", b"GET ")
_REPLY: Final = b"HTTP/1."
_TWICE: Final = "the server answered an earlier request twice"
_ORDER: Final[ContextVar[ReplyOrder | None]] = ContextVar("reply_order", default=None)


class Sockets(fork.ForkAware):
    """The connections of one HTTP client: checked when they are made, closed in a forked child.

    They are seen through httpx's trace of each request.

    Args:
        listener: The listener that each connection must lead to before anything is sent; None
            if it is not known.
    """

    def __init__(self, listener: Listener | None = None) -> None:
        self._listener = listener
        self._has_checked = False
        self._streams: weakref.WeakSet[Any] = weakref.WeakSet()
        fork.register(self)

    def note(self, event: str, info: dict[str, Any]) -> None:
        """Take note of a new connection; other events are ignored.

        Raises:
            ListenerChangedError: It leads to another listener and is closed; or a request is about
                to be sent although no connection was ever checked.
        """
        # The check depends on the name of an event, which another version of httpx may change.
        if self._listener is not None and not self._has_checked and _SENDS in event:
            raise ListenerChangedError(
                "the connection could not be checked, because this version of httpx does not "
                "report new connections as the tested versions do. Install an earlier version"
            )
        if not event.endswith(_CONNECTED):
            return
        stream = info["return_value"]
        # Before the TLS handshake, which is on the same connection.
        if self._listener is not None and event == _TCP:
            try:
                listeners.check(stream.get_extra_info("socket"), self._listener)
            except OSError:
                stream.close()
                raise
            self._has_checked = True
        self._streams.add(stream)
        stream.read = functools.partial(_read, weakref.ref(stream))
        stream.write = functools.partial(_write, weakref.ref(stream))

    def after_fork_in_child(self) -> None:
        """Close the child's copies of the connections; the parent's stay open."""
        for stream in list(self._streams):
            # Through the socket itself: the client's own close() takes its lock, which another
            # thread of the parent may have held.
            inherited = stream.get_extra_info("socket")
            if inherited is not None:
                inherited.close()
        # Descriptors with these numbers may be others at the next fork.
        self._streams = weakref.WeakSet()


class ReplyOrder:
    """Whether the reply to a request came after the request.

    A server, or a proxy, that answers a request twice leaves the second answer in httpcore's
    buffer, and the next request on the connection would get it: vectors of other texts.
    """

    def __init__(self) -> None:
        self._is_awaited = False

    def sent(self, piece: bytes) -> None:
        """Note what is sent; a proxy may be asked for the connection before."""
        if piece.startswith(_REQUESTS):
            self._is_awaited = True

    def received(self, piece: bytes) -> None:
        """Note what was read.

        Raises:
            ConnectionError: It is the rest of an earlier reply.
        """
        if self._is_awaited and piece and not piece.startswith(_REPLY[: len(piece)]):
            raise ConnectionError(_TWICE)
        self._is_awaited = self._is_awaited and not piece

    def check(self) -> None:
        """Check a reply whose head has been read.

        Raises:
            ConnectionError: It was there before the request.
        """
        if self._is_awaited:
            raise ConnectionError(_TWICE)


@contextmanager
def reply_order() -> Iterator[None]:
    """Follow the request that this thread sends during the block."""
    outer = _ORDER.set(ReplyOrder())
    try:
        yield
    finally:
        _ORDER.reset(outer)


def check_order() -> None:
    """Check the reply to the request of this thread, as ``ReplyOrder.check`` does."""
    if (mine := _ORDER.get()) is not None:
        mine.check()


# These replace methods of a network stream of httpcore's. By a weak reference: the stream holds the
# function, and is to be freed without a collection.


def _read(of: weakref.ref[Any], max_bytes: int, timeout: float | None = None) -> Any:
    """Read a large piece, within the exchange of the thread."""
    stream: Any = of()
    with _using(stream, timeout) as left_s:
        piece = type(stream).read(stream, max(max_bytes, READ_BYTES), left_s)
    if (mine := _ORDER.get()) is not None:
        mine.received(piece)
    return piece


def _write(of: weakref.ref[Any], buffer: bytes, timeout: float | None = None) -> None:
    """Write, within the exchange of the thread."""
    stream: Any = of()
    if (mine := _ORDER.get()) is not None:
        mine.sent(buffer)
    with _using(stream, timeout) as left_s:
        type(stream).write(stream, buffer, left_s)


@contextmanager
def _using(stream: Any, timeout: float | None) -> Iterator[float | None]:
    """Have the exchange of the thread use ``stream`` for one step, and give the time for it."""
    exchange = current()
    if exchange is None:
        yield timeout
        return
    exchange.use(stream.get_extra_info("socket"))
    try:
        left_s = exchange.left_s()
        yield left_s if timeout is None else min(timeout, left_s)
    finally:
        # After the last step the connection may be another request's before this one has ended.
        exchange.use(None)

"""The connections of one HTTP client: checked when they are made, closed in a forked child."""

from __future__ import annotations

import os
import socket
from typing import Any, Final
from weakref import WeakSet

from emberd.client import deadline, pieces
from emberd.system import listeners
from emberd.system.listeners import Listener, ListenerChangedError

_TCP: Final = "connection.connect_tcp.complete"
_SENDS: Final = ".send_"  # of http11 and http2: request headers, bodies, settings
_CONNECTED: Final = (_TCP, "connection.start_tls.complete")


class Sockets:
    """The connections of one HTTP client, noted through httpx's trace of each request.

    Args:
        listener: The listener that each connection must lead to before anything is sent; None
            where none is known.
    """

    def __init__(self, listener: Listener | None = None) -> None:
        self._listener = listener
        self._has_checked = False
        self._streams: WeakSet[Any] = WeakSet()

    def note(self, event: str, info: dict[str, Any]) -> None:
        """Take note of a new connection; other events are ignored.

        Raises:
            ListenerChangedError: It leads to another listener and is closed, or a request is about
                to be sent and no connection was ever checked.
        """
        self._refuse_unchecked(event)
        if event in _CONNECTED:
            stream = info["return_value"]
            try:
                self._check(event, stream)
            except OSError:
                stream.close()
                raise
            self._streams.add(stream)
            deadline.bind(stream)

    async def anote(self, event: str, info: dict[str, Any]) -> None:
        """Do as ``note``, for an asynchronous client, whose deadlines are the loop's."""
        self._refuse_unchecked(event)
        if event in _CONNECTED:
            stream = info["return_value"]
            try:
                self._check(event, stream)
            except OSError:
                await stream.aclose()
                raise
            self._streams.add(stream)
            pieces.abind(stream)

    def _check(self, event: str, stream: Any) -> None:
        # Before the TLS handshake, which is on the same connection.
        if self._listener is not None and event == _TCP:
            listeners.check(stream.get_extra_info("socket"), self._listener)
            self._has_checked = True

    def _refuse_unchecked(self, event: str) -> None:
        # The check hangs on the name of an event, which another version of httpx may change.
        if self._listener is not None and not self._has_checked and _SENDS in event:
            raise ListenerChangedError(
                "the connection could not be checked, because this version of httpx does not "
                "report new connections as the versions do that emberd knows. Install an earlier "
                "one"
            )

    def close_in_child(self) -> None:
        """Close the child's copies of the connections; the parent's stay open."""
        for stream in list(self._streams):
            # Asked of the socket itself: the client's own close() takes its lock, which another
            # thread of the parent may have held.
            inherited = stream.get_extra_info("socket")
            if inherited is not None and inherited.fileno() >= 0:
                _close(inherited)


def _close(inherited: Any) -> None:
    if isinstance(inherited, socket.socket):
        inherited.close()
        return
    # A loop's socket cannot be closed from outside. Another file under its number ends the
    # child's share in the connection, and leaves the number to its owner.
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(nothing, inherited.fileno(), inheritable=False)
    os.close(nothing)

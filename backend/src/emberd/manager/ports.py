"""Chooses the port of a server that is to be started.

A server that can take an open descriptor gets a socket that already listens, so no other process
can take the port. It is bound without ``SO_REUSEADDR`` where possible: with that option a port can
be bound that another process has bound already, which lets that process take connections (see
``emberd.system.listeners``).

A server that opens its own socket gets the number of a free port. Unless the user chose it, other
users cannot know it before the server listens: it is chosen at random, and bound only for a moment
to see that it is free. It is not kept bound, which any user could list, and which would not reserve
the port against a process that sets ``SO_REUSEADDR`` too. Where there is one, a port outside the
range is taken from which the kernel assigns ports to other processes.
"""

from __future__ import annotations

import errno
import secrets
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

from emberd.errors import StartError

HOST: Final = "127.0.0.1"

_EPHEMERAL: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_USUAL_EPHEMERAL: Final = (32_768, 65_535)
_FIRST: Final = 10_000  # lower ports belong to well-known programs
_END: Final = 65_536
_TRIES: Final = 100


def listen(wanted: int | None) -> socket.socket:
    """Return a socket that listens on ``wanted``, or on any free port.

    Raises:
        StartError: The port is in use, or this user may not use it.
    """
    opened = _bound(wanted)
    try:
        # Inherited by each connection too: otherwise those that a killed server leaves, until their
        # clients close them, keep the next one off the port. No other process can listen there.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.listen()
        # Inherited by each connection: asyncio sets it only on sockets made with this protocol.
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError as error:
        opened.close()
        raise _unavailable(wanted, error) from error
    return opened


def choose(wanted: int | None) -> int:
    """Return ``wanted`` if it is free, or any free port that the kernel does not assign itself.

    Raises:
        StartError: The port is in use, or this user may not use it.
    """
    if wanted is not None:
        with _bound(wanted):
            return wanted
    first, last = _ephemeral()
    candidates = [*range(_FIRST, first), *range(last + 1, _END)]
    for _ in range(_TRIES if candidates else 0):
        with suppress(OSError), _bind(secrets.choice(candidates), reuse=False) as found:
            return int(found.getsockname()[1])
    with _bound(None) as found:
        return int(found.getsockname()[1])


def _bound(wanted: int | None) -> socket.socket:
    try:
        return _bind(wanted or 0, reuse=False)
    except OSError as error:
        if wanted is None or error.errno != errno.EADDRINUSE:
            raise _unavailable(wanted, error) from error
    try:
        # It may be in use only by connections of a server that has just stopped there.
        return _bind(wanted, reuse=True)
    except OSError as error:
        raise _unavailable(wanted, error) from error


def _bind(port: int, *, reuse: bool) -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if reuse:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((HOST, port))
    except OSError:
        opened.close()
        raise
    return opened


def _ephemeral() -> tuple[int, int]:
    with suppress(OSError, ValueError):
        first, last = map(int, _EPHEMERAL.read_text().split())
        return first, last
    return _USUAL_EPHEMERAL


def _unavailable(wanted: int | None, error: OSError) -> StartError:
    which = "A free port" if wanted is None else f"Port {wanted}"
    return StartError(
        f"{which} of {HOST} is not available: {error.strerror}",
        advice="End the process that uses it, choose another port, or choose none.",
    )

"""Listening sockets that a process opens, or gets from the one that started it.

Apart from ``asgi_process``, because a supervisor that only holds them needs no web server.
"""

from __future__ import annotations

import errno
import socket


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on TCP.

    Raises:
        OSError: The address cannot be used.
    """
    # Before the model is loaded: a taken port is reported at once, and probes are answered.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is given because asyncio sets TCP_NODELAY only then: otherwise the body of each
    # reply waits 40 ms for the acknowledgement of its headers.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


def inherit(descriptor: int) -> socket.socket:
    """Return the listening socket that this process was given.

    Raises:
        OSError: The descriptor is not one.
    """
    listener = socket.socket(fileno=descriptor)
    if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise OSError(errno.EINVAL, "it does not listen")
    listener.set_inheritable(False)
    return listener

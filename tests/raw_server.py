"""A server that answers with bytes of the test's choice, right or wrong, at any speed.

It reads one request after another and gives each to a function, which writes to the connection what
it likes. One thread a connection: only a thread can be slow without being clever.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

DRIP_S = 0.05


@dataclass
class Asked:
    """One request.

    Attributes:
        path: Its path.
        headers: Its headers, by lower-case name.
        body: Its body.
    """

    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


Answering = Callable[[Asked, socket.socket], None]


@dataclass
class RawServer:
    """Where it listens, and what it has seen.

    Attributes:
        url: Its address.
        asked: The requests so far.
        open: The connections that are open.
    """

    url: str
    asked: list[Asked] = field(default_factory=list)
    open: set[socket.socket] = field(default_factory=set)


@contextmanager
def raw_server(answer: Answering) -> Iterator[RawServer]:
    """Run such a server while the context lasts.

    Args:
        answer: Called with each request and the connection; what it raises ends the connection.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        server = RawServer(f"http://127.0.0.1:{listening.getsockname()[1]}")
        threading.Thread(target=_accept, args=(listening, server, answer), daemon=True).start()
        try:
            yield server
        finally:
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)
            for connection in list(server.open):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


def _accept(listening: socket.socket, server: RawServer, answer: Answering) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listening.accept()
            server.open.add(connection)
            threading.Thread(target=_serve, args=(connection, server, answer), daemon=True).start()


def _serve(connection: socket.socket, server: RawServer, answer: Answering) -> None:
    with connection, contextlib.suppress(OSError), connection.makefile("rb") as reading:
        while (asked := _read(reading)) is not None:
            server.asked.append(asked)
            answer(asked, connection)
    server.open.discard(connection)


def _read(reading: Any) -> Asked | None:
    first = reading.readline()
    if not first:
        return None
    headers: dict[str, str] = {}
    while (line := reading.readline().strip()) != b"":
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    body = reading.read(int(headers.get("content-length", 0)))
    return Asked(first.split()[1].decode(), headers, body)


def reply(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """Return a whole reply."""
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def drip(connection: socket.socket, piece: bytes = b"x", period_s: float = DRIP_S) -> None:
    """Send ``piece`` over and over, until the other side closes the connection."""
    pause = threading.Event()
    while not pause.wait(period_s):
        connection.sendall(piece)

"""What the hand-made servers share: HTTP, and replies in SGLang's format.

Each connection has its own thread, which may answer slowly, wrongly or in part. (A server
framework would not break off in the middle of a body.) The imports are few, because the stub server
must start in a tenth of a second.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any, Self

THREAD_NAME = "test-server"

_DRIP_PERIOD_S = 0.05
_LENGTH = re.compile(rb"(?i)\ncontent-length: *(\d+)")


class Request:
    """A request, from its head without the end, and its content."""

    def __init__(self, head: bytes, content: bytes) -> None:
        self._head, self.content = head.decode("latin-1"), content
        self.method, self.path, _ = self._head.split(" ", 2)

    @cached_property
    def headers(self) -> dict[str, str]:
        """By their names in lower case."""
        pairs = (line.partition(":") for line in self._head.splitlines()[1:])
        return {name.lower(): value.strip() for name, _, value in pairs}

    @cached_property
    def body(self) -> Any:
        return json.loads(self.content) if self.content else None

    def has_key(self, key: str | None) -> bool:
        return not key or self.headers.get("authorization") == f"Bearer {key}"


Answer = Callable[[Request, socket.socket], bytes]


class HttpServer:
    """A server on loopback that listens while it is used as a context.

    Args:
        answer: Called with each request and its connection; what it returns is sent. It may also
            write to the connection itself, and break it off by raising an ``OSError``.
        port: Where to listen; 0 for any free port.

    Attributes:
        requests: The requests so far.
        in_flight: How many requests with a body are not answered yet.
        most_in_flight: The most requests at once so far whose answer was not ready.
        changed: Notified when ``in_flight`` changes.
    """

    keeps_requests = True

    def __init__(self, answer: Answer, port: int = 0) -> None:
        self.port = port
        self.requests: list[Request] = []
        self.in_flight = self.most_in_flight = self._unanswered = 0
        self.changed = threading.Condition()
        self._answer = answer
        self._connections: set[socket.socket] = set()
        self._is_draining = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    @property
    def is_listening(self) -> bool:
        return self._listening.fileno() >= 0

    def to(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path == path]

    def listen(self, port: int = 0) -> None:
        self._listening = socket.create_server(("127.0.0.1", port), backlog=128)
        self.port = self._listening.getsockname()[1]
        self._accepting = _start(self._accept, self._listening)

    def drain(self) -> None:
        """End as a terminated server does: only requests in flight are still answered."""
        self._is_draining = True
        _shut_down(self._listening)
        with self.changed:
            self.changed.wait_for(lambda: self.in_flight == 0)

    def die(self) -> None:
        """Go away as a killed process does: connections end, new ones are refused."""
        _shut_down(self._listening)
        self._listening.close()
        self._accepting.join()
        for connection in list(self._connections):
            _shut_down(connection)
        self._connections.clear()

    def __enter__(self) -> Self:
        self.listen(self.port)
        return self

    def __exit__(self, *_: object) -> None:
        self.die()

    def _accept(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                self._connections.add(connection)
                _start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError), connection:
                for request in _requests(connection):
                    self._handle(request, connection)
                    if self._is_draining:
                        break
        finally:
            self._connections.discard(connection)

    def _handle(self, request: Request, connection: socket.socket) -> None:
        if self.keeps_requests:
            self.requests.append(request)
        one = 1 if request.content else 0
        self._count(in_flight=one, unanswered=one)
        unanswered = one
        try:
            answer = self._answer(request, connection)
            # Before it is sent, because its reader may send the next request at once.
            self._count(unanswered=-one)
            unanswered = 0
            connection.sendall(answer)
        finally:
            self._count(in_flight=-one, unanswered=-unanswered)

    def _count(self, *, in_flight: int = 0, unanswered: int = 0) -> None:
        with self.changed:
            self.in_flight += in_flight
            self._unanswered += unanswered
            self.most_in_flight = max(self.most_in_flight, self._unanswered)
            self.changed.notify_all()


def _start(function: Callable[[socket.socket], None], argument: socket.socket) -> threading.Thread:
    thread = threading.Thread(target=function, args=(argument,), name=THREAD_NAME, daemon=True)
    thread.start()
    return thread


def _shut_down(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _requests(connection: socket.socket) -> Iterator[Request]:
    """Read one request after another."""
    buffer = b""
    while True:
        while (end := buffer.find(b"\r\n\r\n")) < 0:
            buffer += _receive(connection)
        length = _LENGTH.search(buffer, 0, end)
        whole = end + 4 + (int(length[1]) if length else 0)
        while len(buffer) < whole:
            buffer += _receive(connection)
        yield Request(buffer[:end], buffer[end + 4 : whole])
        buffer = buffer[whole:]


def _receive(connection: socket.socket) -> bytes:
    if received := connection.recv(1 << 20):
        return received
    raise ConnectionError


# ---- replies


def head(status: int, length: int, headers: dict[str, str] | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} Status", "content-type: application/json"]
    lines += [f"content-length: {length}", *(f"{k}: {v}" for k, v in (headers or {}).items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def reply(status: int, body: Any, headers: dict[str, str] | None = None) -> bytes:
    """Return a whole reply; a body that is not bytes becomes JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head(status, len(content), headers) + content


def drip(connection: socket.socket, pieces: Iterable[bytes]) -> None:
    """Send the pieces one by one, with a pause after each."""
    for piece in pieces:
        connection.sendall(piece)
        time.sleep(_DRIP_PERIOD_S)


def models(model: str, context_tokens: int | None, owner: str = "sglang") -> dict[str, Any]:
    entry: dict[str, Any] = {"id": model, "object": "model", "owned_by": owner}
    if context_tokens is not None:
        entry["max_model_len"] = context_tokens
    return {"object": "list", "data": [entry]}


def model_info(model: str, **more: Any) -> dict[str, Any]:
    return {"model_path": model, "served_model_name": model, "is_generation": False, **more}


def embeddings(model: str, vectors: Iterable[Any], tokens: int) -> dict[str, Any]:
    entries = enumerate(vectors)
    data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in entries]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}

"""A proxy on loopback that keeps what passes through it, to the byte."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from emberd.endpoint import Endpoint

_PATH = "/v1/embeddings"
_PASSED_ON = ("Authorization", "Content-Type")


class Recorder:
    """What was sent to the embeddings route, and what came back.

    Attributes:
        base_url: Where clients are to send.
        api_key: The key of the server behind.
        replies: Bodies that came back, in their order.
    """

    def __init__(self, base_url: str, api_key: str) -> None:
        self.base_url = base_url
        self.api_key = api_key
        self.replies: list[bytes] = []
        self._sent: list[bytes] = []

    def keep(self, sent: bytes, reply: bytes) -> None:
        self._sent.append(sent)
        self.replies.append(reply)

    def taken(self) -> list[bytes]:
        """Return what was sent since the last call, and forget it."""
        sent, self._sent = self._sent, []
        return sent


@contextmanager
def in_front_of(endpoint: Endpoint) -> Iterator[Recorder]:
    """Record what is sent to ``endpoint`` through the recorder's address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(endpoint.url))
    base_url = f"http://127.0.0.1:{server.server_port}/v1"
    server.recorder = Recorder(base_url, endpoint.api_key or "")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.recorder  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(root: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._pass_on(None)

        def do_POST(self) -> None:
            self._pass_on(self.rfile.read(int(self.headers["Content-Length"])))

        def _pass_on(self, body: bytes | None) -> None:
            kept = {n: self.headers[n] for n in _PASSED_ON if n in self.headers}
            status, reply = _ask(root + self.path, body, kept)
            if self.path == _PATH and body is not None:
                self.server.recorder.keep(body, reply)  # type: ignore[attr-defined]
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *arguments: Any) -> None: ...

    return Handler


def _ask(url: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, body, headers), timeout=120) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()

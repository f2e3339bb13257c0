"""A proxy on loopback that keeps what passes through it, to the byte."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from emberd.endpoint import Endpoint
from http_server import HttpServer, Request, reply

_PATH = "/v1/embeddings"
_PASSED_ON = ("authorization", "content-type")


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

    def pass_on(request: Request, _: socket.socket) -> bytes:
        headers = {name: value for name, value in request.headers.items() if name in _PASSED_ON}
        status, body = _ask(endpoint.url + request.path, request.content or None, headers)
        if request.path == _PATH:
            recorder.keep(request.content, body)
        return reply(status, body)

    with HttpServer(pass_on) as server:
        recorder = Recorder(f"{server.url}/v1", endpoint.api_key or "")
        yield recorder


def _ask(url: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, body, headers), timeout=120) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()

"""One deadline for a whole exchange, with its look-up of the name and its tunnel."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest

import http_server
from emberd import probe
from emberd.system import bounded_http, listeners

_LIMIT_S = 0.5
_PATIENCE_S = 10.0
_LONG_S = 30.0
_DRIP_S = 0.05


def test_https_proxy_that_drips_its_answer_does_not_outlast_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(_: http_server.Request, connection: socket.socket) -> bytes:
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Padding: ")
        end_s = time.monotonic() + _LONG_S
        while time.monotonic() < end_s:
            connection.sendall(b"x")
            time.sleep(_DRIP_S)
        raise ConnectionError

    with http_server.HttpServer(answer) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        monkeypatch.setenv("https_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        begun_s = time.monotonic()
        with pytest.raises(OSError, match=r"."):
            probe.fetch("https://server.invalid", "/health", None, None, _LIMIT_S)
        assert time.monotonic() - begun_s < _PATIENCE_S


def test_name_that_is_looked_up_for_too_long_ends_with_the_exchange(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_over = threading.Event()

    def look_up(*given: object, **_: object) -> list[object]:
        if socket.AI_NUMERICHOST in given:
            raise socket.gaierror
        is_over.wait(_LONG_S)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    begun_s = time.monotonic()
    try:
        with bounded_http.bounded(_LIMIT_S), pytest.raises(TimeoutError):
            bounded_http.BoundedConnection("server.invalid").connect()
        with bounded_http.bounded(_LIMIT_S), pytest.raises(TimeoutError):
            listeners.find("http://server.invalid:80")
        assert time.monotonic() - begun_s < _PATIENCE_S
    finally:
        is_over.set()


def test_connection_of_an_exchange_that_was_cancelled_meanwhile_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[socket.socket] = []

    class Noted(bounded_http._BoundedSocket):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            made.append(self)
            exchange.cancel()

    monkeypatch.setattr(bounded_http, "_BoundedSocket", Noted)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        connection = bounded_http.BoundedConnection("127.0.0.1", port, timeout=_LONG_S)
        with bounded_http.bounded(_LONG_S) as exchange, pytest.raises(TimeoutError):
            connection.connect()
    assert [sock.fileno() for sock in made] == [-1]


def test_cancelling_an_exchange_ends_its_connect() -> None:
    with socket.socket() as listener, socket.socket() as waiting:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting.connect(listener.getsockname())  # the backlog is full: no other connect ends
        host, port = listener.getsockname()
        exchange = bounded_http.Exchange(_LONG_S)
        ended = threading.Event()

        def connect() -> None:
            with bounded_http.bounded(exchange), pytest.raises(OSError, match=r"."):
                bounded_http.BoundedConnection(host, port, timeout=_LONG_S).connect()
            ended.set()

        thread = threading.Thread(target=connect)
        thread.start()
        assert not ended.wait(_LIMIT_S)
        exchange.cancel()
        assert ended.wait(_PATIENCE_S)
        thread.join()

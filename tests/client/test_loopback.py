"""Requests from threads to a server of this machine."""

from __future__ import annotations

import http.server
import json
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from emberd.client import loopback
from emberd.client.loopback import LoopbackSession
from emberd.client.wire import Reply, Request, TransportError, embed_request
from emberd.endpoint import Endpoint
from emberd.errors import BadReplyError
from fake_server import MODEL, FakeServer

ASK = embed_request(MODEL, ["a"], None)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.mark.parametrize(
    ("url", "suits"),
    [
        ("http://127.0.0.1:30000", True),
        ("http://localhost:30000/prefix", True),
        ("http://[::1]:30000", True),
        ("https://127.0.0.1:30000", False),
        ("http://10.0.0.1:30000", False),
        ("http://localhost.example.com", False),
    ],
)
def test_only_unencrypted_servers_of_this_machine_are_asked_so(url: str, suits: bool) -> None:
    assert loopback.suits(Endpoint(url, MODEL, 16)) is suits


def test_a_connection_is_used_again(server: FakeServer) -> None:
    session = LoopbackSession(server.endpoint, 5)
    for _ in range(5):
        assert isinstance(session.send(ASK), Reply)
    assert server.connections == 1


def test_one_that_was_idle_for_long_is_not(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = LoopbackSession(server.endpoint, 5)
    session.send(ASK)
    (first,) = session._all
    monkeypatch.setattr(loopback, "KEEP_IDLE_S", -1.0)
    assert isinstance(session.send(ASK), Reply)
    assert first.sock is None


def test_one_that_the_server_has_closed_is_not(server: FakeServer) -> None:
    session = LoopbackSession(server.endpoint, 5)
    session.send(ASK)
    server.die()
    endpoint = server.revive()
    answer = session.send(ASK)
    assert isinstance(answer, TransportError)
    assert answer.kind == "refused"  # by the old address, and not broken off on the old connection
    assert isinstance(LoopbackSession(endpoint, 5).send(ASK), Reply)


def test_connections_close_when_nobody_refers_to_the_session(server: FakeServer) -> None:
    session = LoopbackSession(server.endpoint, 5)
    session.send(ASK)
    del session
    for _ in range(500):
        if server.connections == 0:
            return
        threading.Event().wait(0.01)
    raise AssertionError("a connection is left")


class _Odd(http.server.BaseHTTPRequestHandler):
    """Answers in a way that a header chose."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps({"path": self.path}).encode()
        self.send_response(200)
        if self.path.endswith("chunked"):
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for byte in body:
                self.wfile.write(b"1\r\n" + bytes([byte]) + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.send_header("connection", "close")
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def _odd() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Odd) as odd:
        thread = threading.Thread(target=odd.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{odd.server_address[1]}"
        finally:
            odd.shutdown()
            thread.join()


@pytest.mark.parametrize("way", ["chunked", "close"])
def test_replies_of_every_form_are_read_whole_and_under_a_prefix(way: str) -> None:
    with _odd() as url:
        session = LoopbackSession(Endpoint(f"{url}/below", MODEL, 16), 5)
        for _ in range(3):
            reply = session.send(Request(f"/{way}", {"input": ["a"]}))
            assert isinstance(reply, Reply)
            assert json.loads(reply.body) == {"path": f"/below/{way}"}
        del session


@pytest.mark.parametrize("fault", ["drip", "drip_head"])
def test_a_reply_that_drips_ends_with_the_time(server: FakeServer, fault: str) -> None:
    server.fault = fault
    answer = LoopbackSession(server.endpoint, 0.3).send(ASK)
    assert isinstance(answer, TransportError)
    assert answer.kind == "timeout"


def test_a_port_where_nobody_listens_is_refused(server: FakeServer) -> None:
    session = LoopbackSession(Endpoint("http://127.0.0.1:9", MODEL, 16), 5)
    answer = session.send(ASK)
    assert isinstance(answer, TransportError)
    assert answer.kind == "refused"


def test_a_process_may_have_more_files_open_than_select_can_count(server: FakeServer) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, limit[1]), limit[1]))
    with ExitStack() as files:
        for _ in range(1100):
            files.enter_context(open(os.devnull, "rb"))
        session = LoopbackSession(server.endpoint, 5)
        for _ in range(3):
            assert isinstance(session.send(ASK), Reply)
        del session
    resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def test_a_connection_with_an_answer_that_is_refused_is_not_kept(server: FakeServer) -> None:
    session = LoopbackSession(server.endpoint, 5)
    server.fault = "garbled"
    with pytest.raises(BadReplyError):
        session.send(ASK)
    server.fault = None
    assert isinstance(session.send(ASK), Reply)

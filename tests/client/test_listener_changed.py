"""Another listener has taken the address of a verified server: nothing is sent to it."""

from __future__ import annotations

import asyncio
import errno
import math
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from unittest import mock

import pytest

import waiting
from emberd import Embedder, probe, server_handle
from emberd.client import loopback, sockets, wire
from emberd.client.transport import AsyncTransport, Session, Transport
from emberd.client.verify import verify
from emberd.client.wire import Reply, Request, TransportError
from emberd.endpoint import Endpoint
from emberd.errors import ServerMismatchError, ServerUnavailableError
from emberd.settings import ServerSpec
from emberd.system import listeners
from emberd.system.listeners import Listener
from fake_server import MODEL, FakeServer, vectors_of

ASK = Request("/v1/embeddings", {"model": MODEL, "input": ["a secret text"]})
KEY = "a-secret-key"


class Stranger:
    """Listens, accepts, and keeps what it is sent."""

    def __init__(self, port: int = 0) -> None:
        self._socket = socket.create_server(("127.0.0.1", port))
        self.port: int = self._socket.getsockname()[1]
        self.connections = 0
        self.ended = 0
        self.received = b""
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            with connection, suppress(OSError):
                connection.settimeout(2)
                while piece := connection.recv(65536):
                    self.received += piece
            self.ended += 1

    def close(self) -> None:
        self._socket.close()

    def got_nothing(self) -> bool:
        """Return whether a connection came and ended without a byte."""
        waiting.until(lambda: self.connections and self.ended == self.connections)
        return self.received == b""


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    listening = Stranger()
    yield listening
    listening.close()


def _endpoint(stranger: Stranger, scheme: str) -> Endpoint:
    """Return what was verified at the stranger's address, before the stranger came."""
    before = Listener(uid=0, inode=1)
    return Endpoint(f"{scheme}://127.0.0.1:{stranger.port}", MODEL, 16, None, KEY, listener=before)


def _plain(endpoint: Endpoint) -> Reply | TransportError:
    return Transport(1, 5.0).session(endpoint).send(ASK)


def _sdk(endpoint: Endpoint) -> Reply | TransportError:
    return Session.open(endpoint, 1, 5.0).send(ASK)


def _tasks(endpoint: Endpoint) -> Reply | TransportError:
    async def send() -> Reply | TransportError:
        session = await AsyncTransport(1, 5.0).session(endpoint)
        return await session.send(ASK)

    return asyncio.run(send())


def _remote_tasks(endpoint: Endpoint) -> Reply | TransportError:
    with mock.patch.object(loopback, "suits", return_value=False):
        return _tasks(endpoint)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("send", [_plain, _sdk, _tasks, _remote_tasks])
def test_a_new_connection_to_another_listener_is_closed_before_the_first_byte(
    stranger: Stranger, send: Callable[[Endpoint], Reply | TransportError], scheme: str
) -> None:
    answer = send(_endpoint(stranger, scheme))
    assert isinstance(answer, TransportError)
    assert answer.kind == "changed"
    assert stranger.got_nothing()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_probes_and_verification_send_nothing_to_another_listener(
    stranger: Stranger, scheme: str
) -> None:
    was = _endpoint(stranger, scheme)
    assert probe.get(was.url, "/metrics", KEY, listener=was.listener) is None
    assert not probe.is_ready(was.url, listener=was.listener)
    assert not probe.is_healthy(was.url, listener=was.listener)
    assert probe.activity(was.url, KEY, listener=was.listener) is None
    assert probe.get(was.url, probe.MODELS, KEY, listener=was.listener) is None
    assert probe.model_path(was.url, KEY, listener=was.listener) is None
    with pytest.raises(ServerUnavailableError):
        verify(was.url, KEY, ServerSpec(MODEL), was.listener)
    assert stranger.got_nothing()


def test_nothing_is_sent_if_the_http_client_does_not_report_its_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another version of httpx may call the event differently, on which the check depends."""
    monkeypatch.setattr(sockets, "_TCP", "connection.connect_socket.complete")
    monkeypatch.setattr(sockets, "_CONNECTED", ("connection.connect_socket.complete",))
    with FakeServer(api_key=KEY) as server:
        here = replace(server.endpoint, listener=listeners.find(server.url))
        answer = _sdk(here)
        assert isinstance(answer, TransportError)
        assert answer.kind == "changed"
        assert server.requests == []
        assert isinstance(_sdk(server.endpoint), Reply)


@pytest.mark.parametrize("send", [_plain, _sdk, _tasks, _remote_tasks])
def test_the_verified_listener_is_sent_the_request(send: Callable[[Endpoint], object]) -> None:
    with FakeServer(api_key=KEY) as server:
        here = replace(server.endpoint, listener=listeners.find(server.url))
        assert isinstance(send(here), Reply)


def test_a_changed_listener_is_not_tried_again() -> None:
    outcome = wire.Outcome(TransportError("changed", "another socket"), tries=1, seconds=0.1)
    gone = wire.body_or_failure(outcome, "http://127.0.0.1:1")
    assert isinstance(gone, wire.ServerLost)
    assert gone.changed
    assert not gone.reached


def _embed(embedder: Embedder, twin: str, texts: list[str]) -> object:
    if twin == "threads":
        return embedder.embed_documents(texts)
    return asyncio.run(embedder.aembed_documents(texts))


def _given(server: FakeServer) -> Embedder:
    return Embedder(
        MODEL,
        base_url=server.url,
        timeout=5,
        query_instruction="",
        document_instruction="",
    )


both = pytest.mark.parametrize("twin", ["threads", "tasks"])


@both
def test_a_given_server_that_restarts_is_verified_again_and_used(twin: str) -> None:
    with FakeServer() as server:
        embedder = _given(server)
        _embed(embedder, twin, ["a"])
        server.die()
        server.revive(server.port)
        vectors = _embed(embedder, twin, ["b", "c"])
        assert len(server.to("/v1/models")) == 2
        assert abs(vectors - vectors_of(["b", "c"])).max() < 1e-6  # type: ignore[operator]
        embedder.close()


@both
def test_a_given_server_that_comes_back_with_other_weights_is_refused(twin: str) -> None:
    with FakeServer() as server:
        embedder = _given(server)
        _embed(embedder, twin, ["a"])
        server.die()
        server.weights = 1
        server.revive(server.port)
        for _ in range(2):  # a caller may log the error and go on with the same object
            with pytest.raises(ServerMismatchError, match="other weights"):
                _embed(embedder, twin, ["b", "c"])
        assert ["b", "c"] not in server.embedded
        embedder.close()


@pytest.mark.parametrize("place", [0, 1])
def test_a_vector_without_a_direction_is_not_that_of_the_same_weights(place: int) -> None:
    before = Endpoint("http://127.0.0.1:9", MODEL, 2, canary=((1.0, 0.0), (0.0, 1.0)))
    vectors = [*before.canary]
    vectors[place] = (math.nan, 1.0)
    with pytest.raises(ServerMismatchError, match="other weights"):
        server_handle._check_weights(before, replace(before, canary=tuple(vectors)))


def _rerankers(before: float, after: float) -> tuple[Endpoint, Endpoint]:
    first = Endpoint("http://127.0.0.1:9", MODEL, 1, labels=(1, 2), canary=((before, 0.5),))
    return first, replace(first, canary=((after, 0.5),))


@pytest.mark.parametrize(
    ("before", "after"), [(0.999, 0.99), (1e-5, 1e-4), (0.5, 0.8), (0.5, math.nan)]
)
def test_scores_of_other_weights_are_seen_also_near_zero_and_one(
    before: float, after: float
) -> None:
    with pytest.raises(ServerMismatchError, match="other weights"):
        server_handle._check_weights(*_rerankers(before, after))


@pytest.mark.parametrize(
    ("before", "after"), [(0.999, 0.9985), (0.0, 1e-8), (1.0, 1.0), (0.5, 0.6)]
)
def test_scores_that_differ_by_rounding_are_those_of_the_same_weights(
    before: float, after: float
) -> None:
    server_handle._check_weights(*_rerankers(before, after))


@both
def test_a_given_server_that_comes_back_with_vectors_of_another_length_is_refused(
    twin: str,
) -> None:
    with FakeServer() as server:
        embedder = _given(server)
        _embed(embedder, twin, ["a"])
        server.die()
        server.dimensions = 8
        server.revive(server.port)
        for _ in range(2):
            with pytest.raises(ServerMismatchError):
                _embed(embedder, twin, ["b", "c"])
        assert ["b", "c"] not in server.embedded
        embedder.close()


@both
def test_the_listening_sockets_are_read_again_if_they_cannot_be_read_for_a_moment(
    twin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeServer() as server:
        embedder = _given(server)
        _embed(embedder, twin, ["a"])
        server.die()
        server.revive(server.port)
        asked, errors = listeners.find_at, [OSError(errno.EMFILE, "Too many open files")] * 3

        def find_at(*place: object) -> Listener | None:
            if errors:
                raise errors.pop()
            return asked(*place)  # type: ignore[arg-type]

        monkeypatch.setattr(listeners, "find_at", find_at)
        vectors = _embed(embedder, twin, ["b"])
        assert abs(vectors - vectors_of(["b"])).max() < 1e-6  # type: ignore[operator]
        assert embedder.endpoint().listener is not None
        embedder.close()


@both
def test_a_given_server_whose_port_goes_to_another_user_is_not_sent_a_text(
    twin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeServer() as server:
        embedder = _given(server)
        _embed(embedder, twin, ["a"])
        server.die()
        server.revive(server.port)
        seen = len(server.requests)
        asked = listeners.find_at

        def of_another_user(*place: object) -> Listener | None:
            found = asked(*place)  # type: ignore[arg-type]
            return found and replace(found, uid=found.uid + 1)

        monkeypatch.setattr(listeners, "find_at", of_another_user)
        for _ in range(2):
            with pytest.raises(ServerMismatchError, match="belongs to user"):
                _embed(embedder, twin, ["b", "c"])
        assert len(server.requests) == seen
        embedder.close()


@both
def test_a_given_server_that_restarts_is_waited_for_while_it_is_not_ready(twin: str) -> None:
    with FakeServer() as server:
        embedder = _given(server)
        _embed(embedder, twin, ["a"])
        server.die()
        server.answer_first(503, 503)
        server.revive(server.port)
        vectors = _embed(embedder, twin, ["b"])
        assert abs(vectors - vectors_of(["b"])).max() < 1e-6  # type: ignore[operator]
        embedder.close()


@both
def test_a_stranger_at_the_address_of_a_given_server_gets_no_text(twin: str) -> None:
    with FakeServer(api_key=KEY) as server:
        embedder = Embedder(MODEL, base_url=server.url, api_key=KEY, timeout=1)
        _embed(embedder, twin, ["a"])
        server.die()
        taken = Stranger(server.port)
        with pytest.raises(ServerUnavailableError):
            _embed(embedder, twin, ["b", "c"])
        taken.close()
        assert b"/v1/embeddings" not in taken.received
        embedder.close()


class _Stream:
    """A network stream of httpcore's."""

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        raise NotImplementedError

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("of", ["connection", "proxy", "socks"])
@pytest.mark.parametrize("step", ["connect_tcp", "start_tls"])
def test_connections_through_a_proxy_are_followed_too(of: str, step: str) -> None:
    """As httpcore names them; otherwise they would be neither bounded nor closed in a child."""
    stream = _Stream()
    sockets.Sockets().note(f"{of}.{step}.complete", {"return_value": stream})
    assert {"read", "write"} <= set(vars(stream))

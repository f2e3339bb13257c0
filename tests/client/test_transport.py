"""What leaves the process, and what is left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from embedding import KINDS, QUICK, Kind, embed
from emberd import probe
from emberd.client import loopback, transport
from emberd.client.clients import AsyncClient, Client
from emberd.client.retry import RetryPolicy
from emberd.client.wire import Request
from emberd.endpoint import Endpoint
from emberd.errors import (
    BadReplyError,
    RequestTimeoutError,
    ServerUnavailableError,
    SettingError,
)
from emberd.settings import Settings
from fake_server import MODEL, FakeServer, vectors_of
from http_server import THREAD_NAME

both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


SETTINGS = Settings.resolve(model=MODEL, batch_size=2)

SECRETS = {
    "OPENAI_API_KEY": "sk-secret",
    "OPENAI_ADMIN_KEY": "sk-admin-secret",
    "OPENAI_ORG_ID": "org-secret",
    "OPENAI_PROJECT_ID": "proj-secret",
    "OPENAI_WEBHOOK_SECRET": "whsec-secret",
    "OPENAI_BASE_URL": "http://127.0.0.1:9/secret",
    "OPENAI_CUSTOM_HEADERS": "X-Secret: secret\nAuthorization: Bearer secret",
    "AZURE_OPENAI_API_KEY": "azure-secret",
    "AZURE_OPENAI_AD_TOKEN": "azure-secret",
    "AZURE_OPENAI_ENDPOINT": "http://127.0.0.1:9/secret",
}


@both
@pytest.mark.parametrize("key", [None, "our-key"])
def test_nothing_of_the_users_openai_environment_is_sent(
    kind: Kind, server: FakeServer, monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    server.api_key = key
    embed(kind, server.endpoint, ["x" * 998], dimensions=4)
    assert {request.path for request in server.requests} == {"/v1/embeddings", "/v1/tokenize"}
    for request in server.requests:
        assert "secret" not in str(request.headers)
        assert request.headers["authorization"] == f"Bearer {key or loopback.NO_KEY}"
        assert set(request.headers) - {"connection"} == {
            "accept",
            "accept-encoding",
            "authorization",
            "content-length",
            "content-type",
            "host",
            "user-agent",
        }


@both
def test_no_proxy_stands_before_this_machine(
    kind: Kind, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert embed(kind, server.endpoint, ["a"]).shape == (1, 16)


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:1", True),
        ("http://127.8.9.1:1", True),
        ("http://localhost:1", True),
        ("http://LOCALHOST", True),
        ("http://[::1]:1", True),
        ("http://me.localhost", True),
        ("http://localhost.:1", True),
        ("http://127.1:1", True),
        ("http://0.0.0.0:1", True),
        ("http://[::]:1", True),
        ("http://[::ffff:127.0.0.1]:1", True),
        ("http://[fd00::1]:1", False),
        ("http://10.0.0.1", False),
        ("https://example.org", False),
        ("http://localhost.example.org", False),
    ],
)
def test_this_machine_is_known_by_its_addresses(url: str, here: bool) -> None:
    assert probe.is_loopback(url) is here


@both
@pytest.mark.parametrize(
    "header",
    [
        "Host: elsewhere",
        "Accept: text/plain",
        "Content-Type: text/plain",
        "Content-Length: 3",
        "Transfer-Encoding: chunked",
        "X-Name: Jos\xe9",
    ],
)
def test_the_users_own_headers_do_not_stand_in_the_place_of_ours(
    kind: Kind, server: FakeServer, monkeypatch: pytest.MonkeyPatch, header: str
) -> None:
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", header)
    assert embed(kind, server.endpoint, ["a"]).shape == (1, 16)
    sent = server.requests[-1].headers
    assert sent["host"] == server.url.removeprefix("http://")
    assert (sent["accept"], sent["content-type"]) == ("application/json", "application/json")
    assert "transfer-encoding" not in sent


# ---- bounds


@both
@pytest.mark.parametrize("fault", ["drip", "drip_head", "drip_error"])
def test_an_answer_that_drips_ends_with_the_timeout(
    kind: Kind, server: FakeServer, fault: str
) -> None:
    server.fault = fault
    once = RetryPolicy(timeout_tries=1)
    began = time.monotonic()
    with pytest.raises(RequestTimeoutError):
        embed(kind, server.endpoint, ["a"], timeout=0.4, policy=once)
    assert time.monotonic() - began < 3


@both
def test_an_answer_that_cannot_be_unpacked_is_no_death_of_the_server(
    kind: Kind, server: FakeServer
) -> None:
    server.fault = "garbled"
    reconnected: list[Endpoint] = []

    def reconnect(endpoint: Endpoint) -> Endpoint:
        reconnected.append(endpoint)
        return endpoint

    with pytest.raises(BadReplyError, match="cannot be unpacked"):
        embed(kind, server.endpoint, ["a"], reconnect=reconnect)
    assert (reconnected, len(server.embedded)) == ([], 1)


# ---- a client of the user's own


@pytest.mark.parametrize("key", ["sk-secret\n", "sk-secr\xe9t", "sk-secret\x00"])
def test_a_key_of_a_handed_in_client_that_no_header_carries_is_not_printed(
    server: FakeServer, key: str
) -> None:
    with openai.OpenAI(api_key=key, base_url=f"{server.url}/v1") as handed:
        client = Client(lambda: ELSEWHERE, SETTINGS, sdk_client=handed, policy=QUICK)
        with pytest.raises(SettingError, match="characters that HTTP does not allow") as caught:
            client.embed(["a"], "{text}")
    assert "secr" not in str(caught.value)
    assert server.requests == []


ELSEWHERE = Endpoint("http://127.0.0.1:9", MODEL, 16)


def _theirs(server: FakeServer) -> dict[str, Any]:
    return {
        "api_key": "theirs",
        "base_url": f"{server.url}/v1",
        "default_headers": {"X-Theirs": "yes"},
        "organization": "their-org",
    }


def _check_theirs(server: FakeServer) -> None:
    headers = server.requests[-1].headers
    assert headers["authorization"] == "Bearer theirs"
    assert headers["x-theirs"] == "yes"
    assert headers["openai-organization"] == "their-org"
    assert len(server.embedded) == 2


def test_a_client_of_the_users_own_is_used_as_it_is(server: FakeServer) -> None:
    server.answer_first(503)
    with openai.OpenAI(**_theirs(server)) as handed:
        client = Client(lambda: ELSEWHERE, SETTINGS, sdk_client=handed, policy=QUICK)
        assert (client.embed(["a"], "{text}") == vectors_of(["a"])).all()
        _check_theirs(server)
        client.close()
        assert not handed.is_closed()


async def test_an_asynchronous_client_of_the_users_own_is_used_as_it_is(
    server: FakeServer,
) -> None:
    async def resolve() -> Endpoint:
        return ELSEWHERE

    server.answer_first(503)
    async with openai.AsyncOpenAI(**_theirs(server)) as handed:
        client = AsyncClient(resolve, SETTINGS, sdk_client=handed, policy=QUICK)
        assert (await client.embed(["a"], "{text}") == vectors_of(["a"])).all()
        _check_theirs(server)
        await client.close()
        assert not handed.is_closed()


def test_the_retries_of_a_handed_in_client_are_off(server: FakeServer) -> None:
    server.answer_first(503)
    never = RetryPolicy(busy_s=0, first_s=1)
    with openai.OpenAI(**_theirs(server), max_retries=5) as handed:
        client = Client(lambda: ELSEWHERE, SETTINGS, sdk_client=handed, policy=never)
        with pytest.raises(ServerUnavailableError):
            client.embed(["a"], "{text}")
    assert len(server.embedded) == 1


# ---- threads


def test_connections_are_kept_and_shared_by_threads(server: FakeServer) -> None:
    client = Client(lambda: server.endpoint, SETTINGS)
    texts = [[f"thread {number} text {i}" for i in range(10)] for number in range(6)]
    vectors: dict[int, Any] = {}

    def work(number: int) -> None:
        vectors[number] = client.embed(texts[number], "{text}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.close()
    assert all((vectors[number] == vectors_of(texts[number])).all() for number in range(6))


def test_threads_have_names_and_are_gone_after_the_call(server: FakeServer) -> None:
    before = set(threading.enumerate())
    names: set[str] = set()

    def note(_: int) -> None:
        names.update(thread.name for thread in threading.enumerate())

    embed("threads", server.endpoint, [f"{i}" for i in range(30)], batch_size=1, on_done=note)
    assert "emberd-embed" in names
    _wait_for(lambda: set(threading.enumerate()) <= before)


def test_one_request_needs_no_thread(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        assert thread.name == THREAD_NAME
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        embed("threads", server.endpoint, ["a", "b"])


def test_a_client_that_is_forgotten_closes_its_connections(server: FakeServer) -> None:
    client = Client(lambda: server.endpoint, SETTINGS)
    client.embed(["a"], "{text}")
    assert server.connections == 1
    del client
    gc.collect()
    _wait_for(lambda: server.connections == 0)


def test_closing_a_client_leaves_requests_in_flight_to_finish(server: FakeServer) -> None:
    server.latency_s = 0.1
    client = Client(lambda: server.endpoint, SETTINGS)
    vectors: list[Any] = []
    texts = [f"{i}" for i in range(20)]
    job = threading.Thread(target=lambda: vectors.append(client.embed(texts, "{text}")))
    job.start()
    for _ in range(5):
        _wait_for(lambda: server.in_flight > 0)
        client.close()
    job.join()
    assert (vectors[0] == vectors_of(texts)).all()
    client.close()
    _wait_for(lambda: server.connections == 0)


async def test_closing_an_asynchronous_client_leaves_requests_in_flight_to_finish(
    server: FakeServer,
) -> None:
    server.latency_s = 0.1
    client = _async_client(server)
    texts = [f"{i}" for i in range(20)]
    job = asyncio.create_task(client.embed(texts, "{text}"))
    for _ in range(5):
        await asyncio.to_thread(_wait_for, lambda: server.in_flight > 0)
        await client.close()
    assert (await job == vectors_of(texts)).all()
    await client.close()
    await asyncio.to_thread(_wait_for, lambda: server.connections == 0)


def test_a_closed_client_opens_again(server: FakeServer) -> None:
    client = Client(lambda: server.endpoint, SETTINGS)
    for _ in range(2):
        assert client.embed(["a"], "{text}").shape == (1, 16)
        client.close()
    _wait_for(lambda: server.connections == 0)


def _wait_for(claim: Any, seconds: float = 5) -> None:
    event = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if claim():
            return
        event.wait(0.01)
    raise AssertionError


# ---- loops


def _async_client(server: FakeServer, **settings: Any) -> AsyncClient:
    async def resolve() -> Endpoint:
        return server.endpoint

    return AsyncClient(resolve, SETTINGS.changed(**settings), policy=QUICK)


def test_one_client_serves_one_loop_after_another(server: FakeServer) -> None:
    client = _async_client(server)
    for _ in range(3):
        vectors = asyncio.run(client.embed(["a", "b", "c"], "{text}"))
        assert (vectors == vectors_of(["a", "b", "c"])).all()


def test_one_client_serves_several_loops_at_once(server: FakeServer) -> None:
    client = _async_client(server)
    texts = [[f"loop {number} text {i}" for i in range(10)] for number in range(4)]
    vectors: dict[int, Any] = {}

    def work(number: int) -> None:
        vectors[number] = asyncio.run(client.embed(texts[number], "{text}"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((vectors[number] == vectors_of(texts[number])).all() for number in range(4))


def test_connections_are_kept_from_one_loop_to_the_next_and_close_with_the_client(
    server: FakeServer,
) -> None:
    client = _async_client(server)
    for _ in range(3):
        asyncio.run(client.embed(["a"], "{text}"))
        assert server.connections == 1
    del client
    gc.collect()
    _wait_for(lambda: server.connections == 0)


async def test_forgotten_clients_do_not_pile_up_connections_in_a_long_lived_loop(
    server: FakeServer,
) -> None:
    for _ in range(20):
        await _async_client(server).embed(["a"], "{text}")
    assert server.connections <= 3


async def test_a_client_may_be_closed_in_its_loop_and_opens_again(server: FakeServer) -> None:
    client = _async_client(server)
    for _ in range(2):
        assert (await client.embed(["a"], "{text}")).shape == (1, 16)
        await client.close()
    await asyncio.to_thread(_wait_for, lambda: server.connections == 0)


@pytest.fixture
def opening(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Hold up the opening of sessions as to another machine; events: it has begun, it may end."""
    begun, may_end = threading.Event(), threading.Event()
    opened = transport._open_sdk

    def open_slowly(*given: Any) -> Any:
        begun.set()
        may_end.wait()
        return opened(*given)

    monkeypatch.setattr(transport, "_open_sdk", open_slowly)
    monkeypatch.setattr(loopback, "suits", lambda endpoint: False)
    return begun, may_end


async def test_time_to_open_a_session_is_not_taken_from_the_request(
    server: FakeServer, opening: tuple[threading.Event, threading.Event]
) -> None:
    _, may_end = opening
    client = _async_client(server, timeout=0.5)
    call = asyncio.create_task(client.embed(["a"], "{text}"))
    await asyncio.sleep(1)  # longer than the request may take
    may_end.set()
    assert (await call).shape == (1, 16)


async def test_closing_does_not_wait_for_a_session_that_is_being_opened(
    server: FakeServer, opening: tuple[threading.Event, threading.Event]
) -> None:
    begun, may_end = opening
    client = _async_client(server)
    call = asyncio.create_task(client.embed(["a"], "{text}"))
    await asyncio.to_thread(begun.wait)
    await client.close()
    may_end.set()
    assert (await call).shape == (1, 16)


async def test_many_calls_at_once_share_the_slots_of_the_loop(server: FakeServer) -> None:
    server.overlap = SETTINGS.max_concurrency
    client = _async_client(server, batch_size=2)
    texts = [f"text {i}" for i in range(60)]
    rows = await asyncio.gather(*(client.embed([text], "{text}") for text in texts))
    assert all((row == vectors_of([text])).all() for row, text in zip(rows, texts, strict=True))
    assert server.most_in_flight <= SETTINGS.max_concurrency


async def test_a_cancelled_call_leaves_nothing_behind(server: FakeServer) -> None:
    server.fault = "hang"
    client = _async_client(server)
    call = asyncio.create_task(client.embed([f"{i}" for i in range(20)], "{text}"))
    await asyncio.to_thread(_wait_for, lambda: len(server.embedded) == SETTINGS.max_concurrency)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert len(asyncio.all_tasks()) == 1
    server.fault = None
    assert (await client.embed(["a"], "{text}")).shape == (1, 16)


async def test_a_cancelled_request_that_cannot_connect_ends_with_the_time_to_connect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its thread waits in the kernel, and nothing can wake it."""
    monkeypatch.setattr(transport, "CONNECT_S", 1.0)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        with socket.create_connection(address):  # the only one that the kernel keeps
            endpoint = Endpoint(f"http://127.0.0.1:{address[1]}", MODEL, 16)
            session = transport.AsyncSession(transport.Session.open(endpoint, 1, 60.0), 60.0)
            sending = asyncio.create_task(session.send(Request("/v1/models")))
            await asyncio.to_thread(_wait_for, _request_threads)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            assert _request_threads()
            await asyncio.to_thread(_wait_for, lambda: not _request_threads())


def _request_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "emberd-request"]


# ---- imports

_LIGHT = (
    "from emberd.client import verify; import sys; "
    "print({'asyncio', 'numpy', 'openai'} & {*sys.modules})"
)
_LAZY = "from emberd.client import clients; import sys; print('openai' in sys.modules)"


@pytest.mark.parametrize(("program", "printed"), [(_LIGHT, "set()"), (_LAZY, "False")])
def test_heavy_libraries_are_imported_at_first_use(program: str, printed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert (done.stdout.strip(), done.stderr) == (printed, "")

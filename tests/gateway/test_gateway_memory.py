"""The memory budget of requests in flight."""

from __future__ import annotations

import asyncio
import json
import socket
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from starlette.requests import Request

import waiting
from emberd.gateway import api, api_bodies
from emberd.gateway.api import Gateway
from emberd.gateway.served_models import ServedModels
from emberd.serving import exchange
from emberd.serving.bodies import RefusedError
from emberd.serving.connections import STATE, Connections
from fake_server import QWEN, FakeServer
from gateway.conftest import Faked
from gateways import Running, serving

SHORT = "qwen3-embedding-0.6b"
MIB = 1024 * 1024


def test_a_request_beyond_the_budget_is_refused_and_one_always_fits() -> None:
    gateway = Gateway(ServedModels([]), Connections())
    most = api.MOST_MEMORY_BYTES
    with gateway.call() as large, gateway.call() as small:
        large.reserve(most)
        large.reserve(most)  # the reply of a request whose body was admitted
        with pytest.raises(RefusedError) as refused:
            small.reserve(1)
        assert refused.value.status == 503
    with gateway.call() as one, gateway.call() as other:
        one.reserve(most - 1)
        other.reserve(1)
        with pytest.raises(RefusedError):
            one.reserve(1)
    with gateway.call() as again:
        again.reserve(most)


def test_large_requests_at_once_are_answered_or_refused_within_the_budget(tmp_path: Path) -> None:
    """Without the budget, the replies of ten requests of 2,048 texts would take 1.2 GB."""
    texts = ["x"] * 2048
    with FakeServer(model=QWEN, dimensions=1024, latency_s=0.5) as server:
        with serving(tmp_path / "home", QWEN, environment={"EMBERD_BASE_URL": server.url}) as own:
            own.post(model=SHORT, input="warm")
            with ThreadPoolExecutor(10) as pool:
                pending = [pool.submit(own.post, model=SHORT, input=texts) for _ in range(10)]
                replies = [each.result() for each in pending]
            assert own.metrics()["emberd_gateway_reserved_bytes"] == 0
            peak = _peak_bytes(own.process.pid)
    statuses = [reply.status_code for reply in replies]
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) >= 1
    assert all("retry-after" in reply.headers for reply in replies if reply.status_code == 503)
    assert peak < api.MOST_MEMORY_BYTES + 300 * MIB


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/rerank", {"model": "reranker", "query": "q" * 100_000, "documents": ["a"] * 10_000}),
        ("/v1/embeddings", {"model": SHORT, "input": "a" * 100_000, "task": "{text}" * 333}),
    ],
)
def test_a_small_body_cannot_ask_for_large_prompts(
    faked: Faked, path: str, body: dict[str, Any]
) -> None:
    """Each of these is some 200 KB, and its prompts would take 1 GB, or 640 MB."""
    before = _peak_bytes(faked.running.process.pid)
    assert faked.running.post(path, **{"input_type": None, **body}).status_code in (400, 413)
    assert _peak_bytes(faked.running.process.pid) - before < 100 * MIB


def test_prompts_and_native_vectors_are_taken_from_the_budget(tmp_path: Path) -> None:
    texts, task = ["a"] * 300, "Find " + "x" * 495
    with FakeServer(model=QWEN, dimensions=1024) as server:
        with serving(tmp_path / "home", QWEN, environment={"EMBERD_BASE_URL": server.url}) as own:
            own.post(model=SHORT, input="warm")
            server.latency_s = 1.0
            with ThreadPoolExecutor(1) as pool:
                name = f"{SHORT}:query@32"
                pending = pool.submit(own.post, model=name, input=texts, task=task)
                least = len(texts) * (1024 * 8 + len(task) * 4)
                waiting.until(lambda: own.metrics()["emberd_gateway_reserved_bytes"] > least)
            assert pending.result().status_code == 200


async def test_parsed_strings_are_taken_from_the_budget() -> None:
    body = b'{"input": [%b]}' % b",".join([b'"a"'] * 100_000)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    with Gateway(ServedModels([]), Connections()).call() as call:
        assert await call.body(Request({"type": "http", "headers": []}, receive)) == body
        assert call.reserved > 100_000 * 50  # of a string


@pytest.mark.parametrize("item", [b"[]", b"{}", b"1", b'{"text": []}'])
@pytest.mark.parametrize("field", ["input", "documents", "model", "task", "other"])
def test_values_of_other_types_are_not_built(field: str, item: bytes) -> None:
    body = b'{"%b": [%b]}' % (field.encode(), b",".join([item] * 200_000))
    parse = api_bodies.parse_rerank if field == "documents" else api_bodies.parse_embed
    tracemalloc.start()
    try:
        with pytest.raises(RefusedError) as refused:
            parse("application/json", body)
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()
    assert refused.value.status == 400


def test_a_body_that_has_not_arrived_takes_no_memory_from_others(faked: Faked) -> None:
    heads = [b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", b"Content-Length: 16000000\r\n\r\n{"]
    with ExitStack() as stack:
        for number in range(16):
            _send(stack, faked.running, heads[number % 2])
        waiting.until(lambda: faked.running.metrics()["emberd_gateway_requests_in_flight"] == 16)
        assert faked.running.metrics()["emberd_gateway_reserved_bytes"] < MIB
        assert faked.running.post(model=SHORT, input="a").status_code == 200


def test_a_reply_that_is_not_read_keeps_its_memory(tmp_path: Path) -> None:
    body = json.dumps({"model": SHORT, "input": ["x"] * 2048}).encode()
    with FakeServer(model=QWEN, dimensions=1024) as server, ExitStack() as stack:
        with serving(tmp_path / "home", QWEN, environment={"EMBERD_BASE_URL": server.url}) as own:
            own.post(model=SHORT, input="warm")
            for _ in range(3):
                client = _send(stack, own, b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
                assert client.recv(15) == b"HTTP/1.1 200 OK"
            assert own.metrics()["emberd_gateway_reserved_bytes"] > 3 * 80 * MIB
            assert own.metrics()["emberd_gateway_requests_in_flight"] == 3
            stack.close()
            waiting.until(lambda: own.metrics()["emberd_gateway_reserved_bytes"] == 0)
            assert own.metrics()["emberd_gateway_requests_in_flight"] == 0


class _Unread:
    """A connection whose client takes its reply in steps, and then nothing more."""

    def __init__(self, *left: int) -> None:
        self._left = [*left]
        self.is_aborted = False
        self.transport = self.flow = self

    def set_write_buffer_limits(self, high: int) -> None:
        assert high == 0

    def get_write_buffer_size(self) -> int:
        return self._left.pop(0) if len(self._left) > 1 else self._left[0]

    async def drain(self) -> None:
        await asyncio.Event().wait()

    def abort(self) -> None:
        self.is_aborted = True


@pytest.mark.parametrize(
    ("left", "is_aborted"),
    [((9, 9), True), ((9, 5, 5), True), ((9, 5, 5, 0), False), ((0,), False)],
)
async def test_a_client_that_stops_reading_is_disconnected(
    monkeypatch: pytest.MonkeyPatch, left: tuple[int, ...], is_aborted: bool
) -> None:
    monkeypatch.setattr(exchange, "_UNREAD_S", 0.01)
    connection = _Unread(*left)
    await exchange.sent({"state": {STATE: connection}})
    assert connection.is_aborted == is_aborted


def _send(stack: ExitStack, own: Running, rest: bytes) -> socket.socket:
    """Send a request of which ``rest`` follows the common headers; return its connection."""
    client = stack.enter_context(socket.socket(socket.AF_UNIX))
    client.settimeout(60)
    client.connect(str(own.socket))
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    client.sendall(head + rest)
    return client


def _peak_bytes(pid: int) -> int:
    """Return the most memory that a process has had at once."""
    assert psutil.pid_exists(pid)
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

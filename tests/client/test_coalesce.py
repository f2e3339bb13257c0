"""Concurrent small calls share requests, and a failed one does not affect the others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest

import waiting
from embedding import QUICK
from emberd.client import coalesce, event_loops
from emberd.client.clients import AsyncClient, Client
from emberd.client.coalesce import MergeKey, ThreadMerger
from emberd.client.limits import CallSlots, ConcurrencyLimiter, Slot
from emberd.client.loopback import LoopbackSession
from emberd.client.vectors import Floats
from emberd.client.wire import Outcome, Request, embed_request
from emberd.endpoint import Endpoint
from emberd.errors import (
    BadReplyError,
    EmberdError,
    PoisonTextError,
    RejectedError,
    RequestTimeoutError,
    ServerUnavailableError,
    TextTooLongError,
)
from emberd.settings import Settings
from fake_server import MODEL, FakeServer, vectors_of
from http_server import reply


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


def _client(server: FakeServer, *, reconnects: bool = False, **settings: Any) -> AsyncClient:
    async def resolve() -> Endpoint:
        return server.endpoint

    async def reconnect(lost: Endpoint) -> Endpoint:
        return server.revive() if lost == server.endpoint else server.endpoint

    resolved = Settings.resolve(**{"model": MODEL, "timeout": 5, **settings})
    return AsyncClient(resolve, resolved, policy=QUICK, reconnect=reconnect if reconnects else None)


async def _one(client: AsyncClient, text: str) -> Floats:
    return await client.embed([text], "{text}")


async def _outcomes(client: AsyncClient, texts: list[str]) -> list[Any]:
    return await asyncio.gather(*(_one(client, text) for text in texts), return_exceptions=True)


def _are_vectors(rows: list[Any], texts: list[str]) -> bool:
    return bool((np.concatenate(rows) == vectors_of(texts)).all())


async def test_concurrent_calls_share_one_request(server: FakeServer) -> None:
    texts = [f"text {number}" for number in range(200)]
    rows = await _outcomes(_client(server), texts)
    assert _are_vectors(rows, texts)
    assert [len(inputs) for inputs in server.embedded] == [200]


async def test_request_has_at_most_batch_size_texts(server: FakeServer) -> None:
    texts = [f"text {number}" for number in range(100)]
    assert _are_vectors(await _outcomes(_client(server, batch_size=40), texts), texts)
    # Three requests are under way at once, and any of them may arrive first.
    assert sorted(len(inputs) for inputs in server.embedded) == [20, 40, 40]


async def test_request_has_at_most_the_tokens_of_a_batch(server: FakeServer) -> None:
    server.context_tokens = None
    texts = [f"{number} " + "long " * 4000 for number in range(8)]  # about 5,000 tokens each
    assert _are_vectors(await _outcomes(_client(server), texts), texts)
    assert max(len(inputs) for inputs in server.embedded) == 3


async def test_calls_that_wait_for_a_slot_share_the_next_request(
    server: FakeServer,
) -> None:
    server.latency_s = 0.1
    client = _client(server, max_concurrency=1)
    first = asyncio.create_task(_one(client, "first"))
    await asyncio.to_thread(_wait_for_requests, server, 1)
    texts = [f"text {number}" for number in range(50)]
    rows = [await asyncio.create_task(_later(client, text)) for text in texts[:1]]
    rows += await _outcomes(client, texts[1:])
    assert _are_vectors([await first, *rows], ["first", *texts])
    assert server.most_in_flight == 1


async def _later(client: AsyncClient, text: str) -> Floats:
    return await _one(client, text)


def _wait_for_requests(server: FakeServer, count: int) -> None:
    while len(server.embedded) < count:
        pass


async def test_single_call_is_sent_at_once_in_its_own_request(server: FakeServer) -> None:
    client = _client(server)
    for text in ("a", "b", "c"):
        await _one(client, text)
    assert server.embedded == [["a"], ["b"], ["c"]]


async def test_calls_are_sent_in_order_of_arrival(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A call that takes longer than this, as on a busy machine, lets later ones overtake it.
    monkeypatch.setattr(event_loops, "FIRST_S", 60.0)
    client = _client(server, batch_size=10, max_concurrency=1)
    texts = [f"text {number:02}" for number in range(60)]
    await _outcomes(client, texts)
    assert [text for inputs in server.embedded for text in inputs] == texts


async def test_short_call_does_not_wait_for_the_end_of_a_long_one(
    server: FakeServer,
) -> None:
    client = _client(server, batch_size=5, max_concurrency=2)
    long = asyncio.create_task(client.embed([f"text {n}" for n in range(500)], "{text}"))
    await asyncio.to_thread(_wait_for_requests, server, 1)
    await _one(client, "short")
    assert not long.done()
    await long
    place = next(n for n, inputs in enumerate(server.embedded) if "short" in inputs)
    assert place < 20


async def test_text_too_long_fails_only_its_own_call(server: FakeServer) -> None:
    server.context_tokens = 100
    server.has_tokenizer = False  # so that the server has to refuse it
    texts = ["short", "x" * 500, "also short"]
    first, error, last = await _outcomes(_client(server), texts)
    assert isinstance(error, TextTooLongError)
    assert _are_vectors([first, last], ["short", "also short"])


async def test_bad_reply_is_retried_with_one_request_per_call(server: FakeServer) -> None:
    server.fault = "missing"
    outcomes = await _outcomes(_client(server), ["a", "b", "c"])
    assert [type(outcome) for outcome in outcomes] == [BadReplyError] * 3
    assert [len(inputs) for inputs in server.embedded] == [3, 1, 1, 1]
    assert len({id(outcome) for outcome in outcomes}) == 3


async def test_reply_that_is_not_utf8_fails_every_call(server: FakeServer) -> None:
    body = b'{"data": [{"index": 0, "embedding": "\xff\xfe"}]}'
    server.first.extend([reply(200, body)] * 9)
    outcomes = await asyncio.wait_for(_outcomes(_client(server), ["a", "b", "c"]), 10)
    assert [type(outcome) for outcome in outcomes] == [BadReplyError] * 3


async def test_text_that_times_out_fails_only_its_own_call(server: FakeServer) -> None:
    server.slow = "SLOW"
    texts = ["quick", "SLOW", "quick too"]
    first, error, last = await _outcomes(_client(server, timeout=0.5), texts)
    assert isinstance(error, RequestTimeoutError)
    assert _are_vectors([first, last], ["quick", "quick too"])


async def test_text_that_breaks_the_connection_fails_only_its_own_call(
    server: FakeServer,
) -> None:
    server.breaks = "BREAKS"
    first, error, last = await _outcomes(_client(server), ["a", "this BREAKS", "b"])
    assert isinstance(error, ServerUnavailableError)
    assert _are_vectors([first, last], ["a", "b"])


async def test_text_that_kills_the_server_fails_only_its_own_call(server: FakeServer) -> None:
    server.deadly = "POISON"
    texts = ["fine", "this is the POISON", "fine too", "and fine"]
    first, error, *others = await _outcomes(_client(server, reconnects=True), texts)
    assert isinstance(error, PoisonTextError)
    assert _are_vectors([first, *others], [texts[0], *texts[2:]])


async def test_cancelled_call_does_not_affect_the_others(server: FakeServer) -> None:
    server.latency_s = 0.1
    client = _client(server)
    calls = [asyncio.create_task(_one(client, f"text {number}")) for number in range(10)]
    await asyncio.to_thread(_wait_for_requests, server, 1)
    calls[3].cancel()
    rows = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(rows[3], asyncio.CancelledError)
    del rows[3]
    assert _are_vectors(rows, [f"text {number}" for number in range(10) if number != 3])
    assert len(server.embedded) == 1


async def test_call_cancelled_before_it_has_a_slot_is_not_sent(server: FakeServer) -> None:
    server.latency_s = 0.1
    client = _client(server, max_concurrency=1)
    first = asyncio.create_task(_one(client, "first"))
    await asyncio.to_thread(_wait_for_requests, server, 1)
    waiting = [asyncio.create_task(_one(client, text)) for text in ("gone", "stays")]
    await asyncio.sleep(0.02)
    waiting[0].cancel()
    await asyncio.gather(first, *waiting, return_exceptions=True)
    assert server.embedded == [["first"], ["stays"]]


async def test_request_is_cancelled_when_all_its_calls_are(server: FakeServer) -> None:
    server.fault = "hang"
    client = _client(server)
    calls = [asyncio.create_task(_one(client, f"{number}")) for number in range(5)]
    await asyncio.to_thread(_wait_for_requests, server, 1)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    async for _ in _until(lambda: len(asyncio.all_tasks()) == 1):
        pass
    server.fault = None
    assert (await _one(client, "a")).shape == (1, 16)


async def _until(condition: Any) -> AsyncIterator[None]:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.001)
        yield
    raise AssertionError("the condition did not become true")


async def test_empty_texts_sent_as_ids_get_a_separate_request() -> None:
    with FakeServer(model="Qwen/Qwen3-Embedding-0.6B") as server:
        client = _client(server, model="Qwen/Qwen3-Embedding-0.6B")
        rows = await _outcomes(client, ["a", "", "b", ""])
        assert all(isinstance(row, np.ndarray) for row in rows)
        assert sorted(map(repr, server.embedded)) == ["['a', 'b']", "[[151643], [151643]]"]
        assert (rows[1] == rows[3]).all()


async def test_calls_with_different_dimensions_share_a_request(server: FakeServer) -> None:
    client = _client(server)
    shorter = client.using(Settings.resolve(model=MODEL, timeout=5, dimensions=8))
    whole, cut = await asyncio.gather(_one(client, "a"), _one(shorter, "a"))
    assert (whole.shape, cut.shape) == ((1, 16), (1, 8))
    assert server.embedded == [["a", "a"]]


async def test_unreachable_server_fails_every_call(server: FakeServer) -> None:
    server.die()
    outcomes = await _outcomes(_client(server), ["a", "b"])
    assert all(isinstance(outcome, EmberdError) for outcome in outcomes)


def test_each_event_loop_has_its_own_requests(server: FakeServer) -> None:
    client = _client(server)
    for _ in range(3):
        rows = asyncio.run(_in_new_loop(client))
        assert _are_vectors(rows, ["a", "b"])


async def _in_new_loop(client: AsyncClient) -> list[Any]:
    try:
        return await _outcomes(client, ["a", "b"])
    finally:
        await client.close()


# ---------------------------------------------------------------- threads


def _thread_client(server: FakeServer, *, reconnects: bool = False, **settings: Any) -> Client:
    revival = threading.Lock()

    def reconnect(lost: Endpoint) -> Endpoint:
        with revival:
            return server.revive() if lost == server.endpoint else server.endpoint

    resolved = Settings.resolve(**{"model": MODEL, "timeout": 5, **settings})
    return Client(
        lambda: server.endpoint, resolved, policy=QUICK, reconnect=reconnect if reconnects else None
    )


def _from_threads(client: Client, texts: list[str]) -> list[Any]:
    """Embed each text in its own thread; return an error in place of a failed vector."""

    def one(text: str) -> Any:
        try:
            return client.embed([text], "{text}")
        except Exception as error:  # noqa: BLE001 - returned to the test
            return error

    with ThreadPoolExecutor(len(texts)) as pool:
        return list(pool.map(one, texts))


def test_threads_that_wait_for_a_slot_share_the_next_request(server: FakeServer) -> None:
    server.latency_s = 0.05
    texts = [f"text {number}" for number in range(40)]
    rows = _from_threads(_thread_client(server, max_concurrency=2), texts)
    assert _are_vectors(rows, texts)
    assert len(server.embedded) < 20
    assert server.most_in_flight <= 2


def test_single_thread_sends_at_once_in_its_own_request(server: FakeServer) -> None:
    client = _thread_client(server)
    for text in ("a", "b"):
        client.embed([text], "{text}")
    assert server.embedded == [["a"], ["b"]]


def test_rejected_text_fails_only_its_own_thread(server: FakeServer) -> None:
    server.latency_s = 0.05
    server.refuses = "REFUSED"
    texts = [f"text {number}" for number in range(20)]
    texts[11] = "this is REFUSED"
    rows = _from_threads(_thread_client(server, max_concurrency=1), texts)
    assert isinstance(rows.pop(11), RejectedError)
    del texts[11]
    assert _are_vectors(rows, texts)


def test_text_that_kills_the_server_fails_only_its_own_thread(server: FakeServer) -> None:
    server.latency_s = 0.02
    server.deadly = "POISON"
    texts = [f"text {number}" for number in range(12)]
    texts[5] = "this is the POISON"
    rows = _from_threads(_thread_client(server, reconnects=True, max_concurrency=1), texts)
    assert isinstance(rows.pop(5), PoisonTextError)
    del texts[5]
    assert _are_vectors(rows, texts)


def test_interrupted_thread_does_not_affect_the_others(server: FakeServer) -> None:
    """When the thread that sends for all is interrupted, the others send their own requests."""
    merger = ThreadMerger(can_reconnect=False)
    key = MergeKey(server.endpoint, None, holds_ids=False, most_texts=10)
    requests = [embed_request(MODEL, [text], None) for text in ("first", "second")]
    limiter = ConcurrencyLimiter()
    held = CallSlots(limiter, 1).acquire()
    results: list[Any] = []

    def interrupt(request: Request, slot: Slot | None) -> Outcome:
        assert len(request.inputs) == 2
        raise KeyboardInterrupt

    def send(request: Request, slot: Slot | None) -> Outcome:
        assert slot is None, "sent in its own request"
        return Outcome(LoopbackSession(server.endpoint, 5).send(request), 1, 0.0)

    def first() -> None:
        try:
            merger.send(key, requests[0], 1, CallSlots(limiter, 1), interrupt)
        except KeyboardInterrupt as error:
            results.append(error)

    def second() -> None:
        results.append(merger.send(key, requests[1], 1, CallSlots(limiter, 1), send))

    threads = [threading.Thread(target=run) for run in (first, second)]
    for number, thread in enumerate(threads, start=1):
        thread.start()
        waiting.until(partial(_are_waiting, limiter, number))
    held.release()
    for thread in threads:
        thread.join(10)
    assert len(limiter.queue.held) == 0
    assert [type(one) for one in results if isinstance(one, BaseException)] == [KeyboardInterrupt]
    assert server.embedded == [["second"]]


class _Interrupted(threading.Event):
    """An event whose first ``set`` is interrupted before it wakes the waiting threads."""

    def set(self) -> None:
        if not self.is_set():
            self._flag = True
            raise KeyboardInterrupt
        super().set()


def test_thread_gets_its_result_after_an_interrupted_set_result() -> None:
    answer = coalesce._ThreadAnswer()
    answer._is_done = _Interrupted()
    waiting_thread = threading.Thread(target=answer.result, daemon=True)
    waiting_thread.start()
    waiting.until(lambda: answer._is_done._cond._waiters)  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        answer.set_result(None)
    answer.set_result(None)
    waiting_thread.join(30)
    assert not waiting_thread.is_alive()


def test_reply_that_is_not_utf8_fails_every_thread(server: FakeServer) -> None:
    server.latency_s = 0.02
    server.first.extend([reply(200, b'{"data": "\xff"}')] * 40)
    outcomes = _from_threads(_thread_client(server, max_concurrency=1), list("abcdef"))
    assert [type(outcome) for outcome in outcomes] == [BadReplyError] * 6


def _are_waiting(limiter: ConcurrencyLimiter, count: int) -> bool:
    return len(limiter.queue.waiting) == count

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import waiting
from emberd.client.clients import Client
from emberd.client.limits import CallEndedError, CallSlots, ConcurrencyLimiter, Slot, TaskLimiter
from emberd.settings import Settings
from fake_server import MODEL, FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@contextmanager
def _held(
    limiter: ConcurrencyLimiter, limit: int, group: object = None, *, exclusive: bool = False
) -> Iterator[Slot]:
    slot = CallSlots(limiter, limit, group).acquire(exclusive=exclusive)
    try:
        yield slot
    finally:
        slot.release()


def test_slots_are_bounded_over_all_calls() -> None:
    limiter = ConcurrencyLimiter()
    entered = threading.Event()

    def wait_for_slot() -> None:
        with _held(limiter, 2):
            entered.set()

    with _held(limiter, 2):
        with _held(limiter, 2):
            thread = threading.Thread(target=wait_for_slot)
            thread.start()
            assert not entered.wait(0.05)
        thread.join()
        assert entered.is_set()
    assert len(limiter.queue.held) == 0


def test_a_call_that_has_ended_releases_its_slots_once() -> None:
    limiter = ConcurrencyLimiter()
    call = CallSlots(limiter, 5)
    slots = [call.acquire(), call.acquire()]
    call.abandon()
    assert len(limiter.queue.held) == 0
    with _held(limiter, 1):
        for slot in slots:
            slot.release()
        assert len(limiter.queue.held) == 1
    assert len(limiter.queue.held) == 0


@pytest.mark.parametrize("wait", [lambda call: call.acquire(), lambda call: call.sleep(60)])
def test_waiting_ends_with_the_call(wait: Callable[[CallSlots], object]) -> None:
    limiter = ConcurrencyLimiter()
    call = CallSlots(limiter, 1)
    errors: list[type[BaseException]] = []

    def run() -> None:
        try:
            wait(call)
        except CallEndedError as error:
            errors.append(type(error))

    with _held(limiter, 1):
        thread = threading.Thread(target=run)
        thread.start()
        call.abandon()
        thread.join()
    assert errors == [CallEndedError]
    assert len(limiter.queue.held) == 0


def test_a_slot_that_is_not_wanted_any_more_is_not_waited_for() -> None:
    limiter = ConcurrencyLimiter()
    call = CallSlots(limiter, 1)
    unwanted = threading.Event()
    found: list[Slot | None] = []
    with _held(limiter, 1):
        thread = threading.Thread(target=lambda: found.append(call.acquire_unless(unwanted.is_set)))
        thread.start()
        waiting.until(_are_waiting(limiter, 1))
        unwanted.set()
        call.recheck()
        thread.join()
    assert found == [None]
    assert len(limiter.queue.held) == 0


def test_a_small_limit_does_not_starve_beside_a_large_one() -> None:
    """A query of a client of one slot comes between the many requests of an ingest."""
    limiter = ConcurrencyLimiter()
    served = threading.Event()
    is_over = threading.Event()

    def run_ingest() -> None:
        while not is_over.is_set():
            with _held(limiter, 2):
                is_over.wait(0.001)

    def run_query() -> None:
        with _held(limiter, 1):
            served.set()

    threads = [threading.Thread(target=run_ingest) for _ in range(4)]
    for thread in threads:
        thread.start()
    asking = threading.Thread(target=run_query)
    asking.start()
    came = served.wait(5)
    is_over.set()
    for thread in (*threads, asking):
        thread.join()
    assert came
    assert len(limiter.queue.held) == 0


def _are_waiting(limiter: ConcurrencyLimiter, count: int) -> Callable[[], bool]:
    return lambda: len(limiter.queue.waiting) == count


def test_the_largest_limit_bounds_all_and_the_oldest_waiter_goes_first() -> None:
    limiter = ConcurrencyLimiter()
    order: list[str] = []

    def take(name: str, limit: int) -> None:
        with _held(limiter, limit):
            order.append(name)

    threads = [threading.Thread(target=take, args=who) for who in (("small", 1), ("large", 2))]
    with _held(limiter, 2):
        with _held(limiter, 2):
            for number, thread in enumerate(threads, start=1):
                thread.start()
                waiting.until(_are_waiting(limiter, number))
            assert order == []
        # One slot is free, so the second begins only when the first has ended.
        for thread in threads:
            thread.join()
    assert order == ["small", "large"]


def test_an_exclusive_request_excludes_the_others_of_its_client_only() -> None:
    limiter = ConcurrencyLimiter()
    order: list[str] = []
    release = threading.Event()

    def take(name: str, group: str, exclusive: bool) -> None:
        with _held(limiter, 8, group, exclusive=exclusive):
            order.append(name)
            if exclusive:
                release.wait()

    threads = [
        threading.Thread(target=take, args=who)
        for who in (("exclusive", "mine", True), ("later", "mine", False))
    ]
    with _held(limiter, 8, "mine"):
        for number, thread in enumerate(threads, start=1):
            thread.start()
            waiting.until(_are_waiting(limiter, number))
        with _held(limiter, 8, "another client"):
            assert order == []
    waiting.until(lambda: order == ["exclusive"])
    assert _are_waiting(limiter, 1)()
    with _held(limiter, 8, "another client"):
        release.set()
    for thread in threads:
        thread.join()
    assert order == ["exclusive", "later"]


def test_an_exclusive_request_does_not_wait_for_a_call_that_has_ended() -> None:
    limiter = ConcurrencyLimiter()
    ended = CallSlots(limiter, 2, "mine")
    left_behind = ended.acquire()
    ended.abandon()
    with _held(limiter, 2, "mine", exclusive=True):
        pass
    left_behind.release()
    with _held(limiter, 2, "mine"):
        pass


async def test_tasks_are_bounded_and_may_be_exclusive() -> None:
    limiter = TaskLimiter()
    first = await limiter.acquire(2, "mine")
    exclusive = asyncio.create_task(limiter.acquire(2, "mine", exclusive=True))
    later = asyncio.create_task(limiter.acquire(2, "mine"))
    await asyncio.sleep(0)
    assert not exclusive.done()
    first.release()
    slot = await exclusive
    assert not later.done()
    slot.release()
    (await later).release()


async def test_a_cancelled_task_gives_its_place_up() -> None:
    limiter = TaskLimiter()
    first = await limiter.acquire(1, "mine")
    cancelled = asyncio.create_task(limiter.acquire(1, "mine"))
    later = asyncio.create_task(limiter.acquire(1, "mine"))
    await asyncio.sleep(0)
    first.release()  # granted to the one that is cancelled before it runs again
    cancelled.cancel()
    (await later).release()
    (await limiter.acquire(1, "mine")).release()


def test_several_clients_share_the_slots_of_the_process(server: FakeServer) -> None:
    server.overlap = 3
    settings = Settings.resolve(model=MODEL, batch_size=1, max_concurrency=3, timeout=10)
    clients = [Client(lambda: server.endpoint, settings) for _ in range(3)]
    texts = [f"{i}" for i in range(12)]
    threads = [threading.Thread(target=client.embed, args=(texts, "{text}")) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in clients:
        client.close()
    assert len(server.embedded) == 3 * len(texts)
    assert server.most_in_flight <= 3


_INTERRUPTED = """
import sys, threading, time
from emberd.client import limits
from emberd.client.clients import Client
from emberd.endpoint import Endpoint
from emberd.settings import Settings
client = Client(lambda: Endpoint({url!r}, "m", 16), Settings.resolve(batch_size=1, timeout=300))
try:
    print("begins", flush=True)
    client.embed([str(i) for i in range({count})], "{{text}}")
except KeyboardInterrupt:
    print("interrupted", len(limits.PROCESS_LIMITER.queue.held), flush=True)
"""


@pytest.mark.parametrize("count", [1, 20])
def test_ctrl_c_ends_the_call_and_the_process_at_once(server: FakeServer, count: int) -> None:
    server.fault = "hang"
    child = subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTED.format(url=server.url, count=count)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "begins\n"
        pause = threading.Event()
        while len(server.embedded) < min(count, 8) and child.poll() is None:
            pause.wait(0.01)
        child.send_signal(signal.SIGINT)
        said, _ = child.communicate(timeout=10)
    finally:
        child.kill()
        child.wait()
    assert said == "interrupted 0\n"
    assert child.returncode == 0

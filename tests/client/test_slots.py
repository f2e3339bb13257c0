from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

import waiting
from emberd.client.slots import AbandonedError, Lease, Slots
from emberd.client.sync import Client
from emberd.settings import Settings
from fake_server import MODEL, FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


def test_slots_are_bounded_over_all_leases() -> None:
    slots = Slots()
    entered = threading.Event()

    def wait_for_slot() -> None:
        with Lease(slots, 2).slot():
            entered.set()

    with Lease(slots, 2).slot():
        with Lease(slots, 2).slot():
            thread = threading.Thread(target=wait_for_slot)
            thread.start()
            assert not entered.wait(0.05)
        thread.join()
        assert entered.is_set()
    assert slots.taken == 0


def test_an_abandoned_lease_gives_back_what_it_holds_once() -> None:
    slots = Slots()
    lease = Lease(slots, 5)
    with lease.slot():
        with lease.slot():
            lease.abandon()
            assert slots.taken == 0
        with Lease(slots, 1).slot():
            assert slots.taken == 1
    assert slots.taken == 0


def test_who_waits_in_an_abandoned_lease_is_let_go() -> None:
    slots = Slots()
    lease = Lease(slots, 1)
    errors: list[type[BaseException]] = []

    def wait() -> None:
        try:
            with lease.slot():
                pass
        except AbandonedError as error:
            errors.append(type(error))

    with Lease(slots, 1).slot():
        thread = threading.Thread(target=wait)
        thread.start()
        lease.abandon()
        thread.join()
    assert errors == [AbandonedError]
    assert slots.taken == 0


def test_a_small_limit_does_not_starve_beside_a_large_one() -> None:
    """A query of a client of one slot comes between the many requests of an ingest."""
    slots = Slots()
    ingest, query = Lease(slots, 2), Lease(slots, 1)
    served = threading.Event()
    is_over = threading.Event()

    def run_ingest() -> None:
        while not is_over.is_set():
            with ingest.slot():
                is_over.wait(0.001)

    def run_query() -> None:
        with query.slot():
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
    assert slots.taken == 0


def _are_waiting(slots: Slots, count: int) -> Callable[[], bool]:
    return lambda: len(slots._waiting) == count


def test_the_largest_limit_bounds_all_and_who_waits_longest_goes_first() -> None:
    slots = Slots()
    order: list[str] = []

    def take(name: str, limit: int) -> None:
        with Lease(slots, limit).slot():
            order.append(name)

    threads = [threading.Thread(target=take, args=who) for who in (("small", 1), ("large", 2))]
    with Lease(slots, 2).slot(), Lease(slots, 2).slot():
        for number, thread in enumerate(threads, start=1):
            thread.start()
            waiting.until(_are_waiting(slots, number))
        assert order == []
    for thread in threads:
        thread.join()
    assert order == ["small", "large"]


def test_several_clients_share_the_slots_of_the_process(server: FakeServer) -> None:
    server.latency_s = 0.01
    settings = Settings.resolve(model=MODEL, batch_size=1, max_concurrency=3)
    clients = [Client(lambda: server.endpoint, settings) for _ in range(3)]
    texts = [f"{i}" for i in range(12)]
    threads = [threading.Thread(target=client.embed, args=(texts, "{text}")) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for client in clients:
        client.close()
    assert server.most_in_flight == 3


_INTERRUPTED = """
import sys, threading, time
from emberd.client import slots
from emberd.client.sync import Client
from emberd.endpoint import Endpoint
from emberd.settings import Settings
client = Client(lambda: Endpoint({url!r}, "m", 16), Settings.resolve(batch_size=1, timeout=300))
try:
    print("begins", flush=True)
    client.embed([str(i) for i in range({count})], "{{text}}")
except KeyboardInterrupt:
    print("interrupted", slots.PROCESS_SLOTS.taken, flush=True)
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

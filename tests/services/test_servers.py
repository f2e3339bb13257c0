"""Behaviour of both Redis and Memcached."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import socketserver
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from cache.made import filled, keys, right, units
from cache.processes import process
from emberd.cache import open_cache
from emberd.cache.cache import Cache
from emberd.cache.remote import TIMEOUT_S
from ports import free_port
from services.conftest import Start
from services.running import Service

WRITER = """
import sys
from cache.made import keys, units
from emberd.cache import open_cache
first = int(sys.argv[2])
cache = open_cache(sys.argv[1])
for at in range(first, first + 2000, 50):
    cache.put_many(keys(range(at, at + 50)), units(range(at, at + 50)))
"""


def test_what_was_put_is_found_by_another_object(service: Service) -> None:
    filled(service.url, range(1000))
    cache = open_cache(service.url)
    assert right(cache, range(500, 1500)) == 500
    counted = cache.stats()
    assert (counted.hits, counted.misses, counted.recovered) == (500, 500, 0)


def test_thousands_of_keys_are_looked_up_in_their_order(service: Service) -> None:
    cache = filled(service.url, range(1700))
    numbers = np.random.default_rng(1).permutation(1700).tolist()
    assert right(cache, [*numbers, 5, 5]) == 1702


def test_vectors_of_every_model_fit(service: Service) -> None:
    filled(service.url, range(10), 4096)
    assert right(open_cache(service.url), range(10), 4096) == 10
    half = filled(f"{service.url}?dtype=float16", range(10, 20), 2560)
    found = half.get_many(keys(range(10, 20)), 2560)
    assert np.abs(found.vectors - units(range(10, 20), 2560)).max() < 1e-4


def test_two_processes_that_write_at_once_lose_nothing(service: Service) -> None:
    with process(WRITER, service.url, "0") as one, process(WRITER, service.url, "1000") as other:
        assert (one.wait(), other.wait()) == (0, 0)
    assert right(open_cache(service.url), range(3000)) == 3000


def test_threads_share_an_object(service: Service) -> None:
    cache = open_cache(service.url)

    def work(number: int) -> int:
        had = 0
        for first in range(number * 100, number * 100 + 100, 10):
            cache.put_many(keys(range(first, first + 10)), units(range(first, first + 10)))
            had += right(cache, range(first, first + 10))
        return had

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [100] * 8
    cache.close()


def test_parent_and_child_have_their_own_connections(service: Service) -> None:
    cache = filled(service.url, range(300))
    assert right(cache, range(300)) == 300
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_read, args=(cache,)) for _ in range(3)]
    for child in children:
        child.start()
    _read(cache)
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    _read(cache)
    cache.close()


def _read(cache: Cache) -> None:
    for _ in range(10):
        assert right(cache, range(300)) == 300


def test_copies_and_pickles_make_their_own_connections(service: Service) -> None:
    cache = filled(service.url, [1])
    for other in (pickle.loads(pickle.dumps(cache)), copy.deepcopy(cache)):
        assert right(other, [1]) == 1
        other.close()


def test_records_of_another_version_are_misses_and_removed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as other:
        other.setattr("emberd.cache.records.VERSION", 2)
        filled(service.url, range(10))
    cache = open_cache(service.url)
    assert right(cache, range(20)) == 0
    assert cache.stats().recovered == 10
    assert right(cache, range(20)) == 0
    assert cache.stats().recovered == 10


def test_the_keys_of_another_version_are_never_read(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as other:
        other.setattr("emberd.cache.cache._KEY_FORMAT", b"emberd cache 0")
        filled(service.url, range(10))
    cache = open_cache(service.url)
    assert right(cache, range(10)) == 0
    assert cache.stats().recovered == 0


@pytest.mark.usefixtures("no_pause")
def test_restarted_server_is_used_again(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    cache = filled(service.url, range(10))
    assert right(cache, range(10)) == 10
    service.kill()
    for _ in range(3):
        assert right(cache, range(10)) == 0
        cache.put_many(keys(range(10)), units(range(10)))
    assert [said.partition(" (")[0] for said in caplog.messages] == [
        f"Reading the cache at {service.url} failed",
        f"Writing to the cache at {service.url} failed",
    ]
    service.start()
    cache.put_many(keys(range(10)), units(range(10)))
    assert right(cache, range(10)) == 10
    assert [said.rpartition(" works")[2] for said in caplog.messages[2:]] == [" again."] * 2


def test_restart_between_requests_loses_no_reply(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    cache = open_cache(service.url)
    cache.put_many(keys([1]), units([1]))
    service.kill()
    service.start()
    cache.put_many(keys([1]), units([1]))
    assert right(cache, [1]) == 1
    assert caplog.messages == []


def test_hanging_server_is_not_used_after_its_timeout(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    cache = filled(service.url, range(10))
    assert right(cache, range(10)) == 10
    service.freeze()
    began = time.monotonic()
    for _ in range(20):
        assert right(cache, range(10)) == 0
        cache.put_many(keys(range(10)), units(range(10)))
    # Not a claim on speed: forty calls that each wait would take forty timeouts.
    assert time.monotonic() - began < 20 * TIMEOUT_S
    service.thaw()
    assert len(caplog.messages) == 2


@pytest.mark.parametrize("scheme", ["redis", "memcached"])
def test_closed_port_costs_only_the_cache(scheme: str, caplog: pytest.LogCaptureFixture) -> None:
    cache = open_cache(f"{scheme}://127.0.0.1:{free_port()}")
    cache.put_many(keys([1]), units([1]))
    assert right(cache, [1]) == 0
    assert len(caplog.messages) == 2


class _Http(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.rfile.readline()
        self.wfile.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno")


class _Rubbish(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.rfile.readline()
        self.wfile.write(b"$5\r\n\xff\xfe\x00\x01\r\n*-9\r\nVALUE a b c\r\n" * 20)


@pytest.mark.parametrize("handler", [_Http, _Rubbish])
@pytest.mark.parametrize("scheme", ["redis", "memcached"])
def test_other_kind_of_server_on_the_port_costs_only_the_cache(
    scheme: str, handler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        cache = open_cache(f"{scheme}://127.0.0.1:{server.server_address[1]}")
        try:
            cache.put_many(keys([1]), units([1]))
            assert right(cache, [1]) == 0
        finally:
            cache.close()
            server.shutdown()
    assert len(caplog.messages) == 2


def test_redis_instead_of_memcached_costs_only_the_cache(start: Start) -> None:
    redis, memcached = start("redis"), start("memcached")
    for scheme, port in (("memcached", redis.port), ("redis", memcached.port)):
        cache = open_cache(f"{scheme}://127.0.0.1:{port}")
        cache.put_many(keys([1]), units([1]))
        assert right(cache, [1]) == 0
        cache.close()

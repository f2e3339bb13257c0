from __future__ import annotations

import time

import pytest
from pymemcache import Client

from cache.made import filled, keys, right, units
from emberd.cache import open_cache
from emberd.cache.remote import _expiry
from services.conftest import Start


def test_corrupt_value_is_removed_and_stored_again(start: Start) -> None:
    service = start("memcached")
    cache = filled(service.url, range(10))
    name = f"emberd:{keys([3])[0].hex()}"
    other = Client(("127.0.0.1", service.port), default_noreply=False)
    record = other.get(name)
    other.set(name, record[:-1] + bytes([record[-1] ^ 1]))
    assert right(cache, range(10)) == 9
    assert cache.stats().recovered == 1
    assert other.get(name) is None
    cache.put_many(keys([3]), units([3]))
    assert right(cache, range(10)) == 10
    other.close()
    cache.close()


def test_keys_are_shared_between_servers_and_one_may_be_down(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = start("memcached"), start("memcached")
    cache = open_cache(f"memcached://127.0.0.1:{one.port},127.0.0.1:{other.port}")
    cache.put_many(keys(range(1000)), units(range(1000)))
    assert right(cache, range(1000)) == 1000
    alone = right(open_cache(one.url), range(1000))
    assert 400 < alone < 600
    other.kill()
    assert right(cache, range(1000)) == alone
    cache.put_many(keys(range(1000, 2000)), units(range(1000, 2000)))
    assert 400 < right(cache, range(1000, 2000)) < 600
    assert all(str(other.port) in said for said in caplog.messages)
    cache.close()


def test_full_server_evicts_old_entries(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    service = start("memcached", "-m", "2")
    cache = filled(service.url, range(5000))
    assert 10 < right(cache, range(5000)) < 5000
    assert right(cache, range(4990, 5000)) == 10
    assert caplog.messages == []
    cache.close()


@pytest.mark.parametrize("ttl", ["1h", "30d", "90d"])
def test_long_ttl_is_not_taken_for_a_past_date(ttl: str, start: Start) -> None:
    service = start("memcached")
    cache = filled(f"{service.url}?ttl={ttl}", range(5))
    assert right(cache, range(5)) == 5
    cache.close()


def test_long_ttl_is_sent_as_a_time_of_day() -> None:
    assert _expiry(90 * 86400) > time.time()
    assert _expiry(60) == 60
    assert _expiry(None) == 0

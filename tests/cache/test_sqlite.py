from __future__ import annotations

import copy
import os
import pickle
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cache.made import filled, keys, right, units
from emberd.cache import open_cache
from emberd.cache.cache import Cache
from emberd.cache.sqlite import Database


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "vectors.db"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite://{path}"


@pytest.fixture
def cache(url: str) -> Cache:
    return open_cache(url)


def test_opening_and_looking_up_make_no_file(cache: Cache, path: Path) -> None:
    assert right(cache, range(3)) == 0
    assert (cache.stats().entries, cache.stats().bytes) == (0, 0)
    assert not path.parent.exists()


def test_what_was_put_is_found_by_another_object(url: str) -> None:
    filled(url, range(1000))
    assert right(open_cache(url), range(500, 1500)) == 500


def test_a_thousand_and_more_keys_are_looked_up_at_once_in_their_order(cache: Cache) -> None:
    numbers = np.random.default_rng(1).permutation(1700).tolist()
    cache.put_many(keys(range(1700)), units(range(1700)))
    assert right(cache, numbers) == 1700


def test_duplicate_key_is_found_twice(cache: Cache) -> None:
    cache.put_many(keys([1, 1]), units([1, 1]))
    assert right(cache, [1, 2, 1]) == 2
    assert cache.stats().entries == 1


def test_empty_lookup(cache: Cache) -> None:
    cache.put_many([], np.empty((0, 8), np.float32))
    assert cache.get_many([]).vectors.shape == (0, 0)
    assert cache.stats().misses == 0


def test_the_last_vector_of_a_key_counts(cache: Cache) -> None:
    cache.put_many(keys([1, 2]), units([7, 2]))
    cache.put_many(keys([1, 3]), units([1, 3]))
    assert right(cache, [1, 2, 3]) == 3
    assert cache.stats().entries == 3


def test_hits_and_misses_are_counted_by_each_object(cache: Cache, url: str) -> None:
    cache.put_many(keys(range(10)), units(range(10)))
    cache.get_many(keys(range(5, 20)))
    counted = cache.stats()
    assert (counted.hits, counted.misses, counted.recovered, counted.entries) == (5, 10, 0, 10)
    assert counted.bytes is not None
    assert counted.bytes > 10 * 384 * 4
    assert open_cache(url).stats().hits == 0


def test_float16_is_kept_in_half_the_space(tmp_path: Path) -> None:
    whole = filled(f"sqlite://{tmp_path}/a.db", range(600), 2560).stats().bytes
    half = filled(f"sqlite://{tmp_path}/b.db?dtype=float16", range(600), 2560).stats().bytes
    assert whole
    assert half
    assert half < 0.56 * whole


def test_float32_entries_replace_float16_ones_and_serve_float16_caches(url: str) -> None:
    rounding = filled(f"{url}?dtype=float16", range(5))
    whole = open_cache(url)
    assert not whole.get_many(keys(range(5))).mask.any()
    whole.put_many(keys(range(5)), units(range(5)))
    assert right(whole, range(5)) == right(rounding, range(5)) == 5
    assert whole.stats().recovered == 0


def test_closing_leaves_one_file_and_the_next_use_opens_it_again(cache: Cache, path: Path) -> None:
    cache.put_many(keys([1]), units([1]))
    cache.close()
    cache.close()
    assert sorted(os.listdir(path.parent)) == ["vectors.db", "vectors.db.lock"]
    assert right(cache, [1]) == 1


def test_files_are_private(cache: Cache, path: Path) -> None:
    before = os.umask(0)
    try:
        cache.put_many(keys([1]), units([1]))
    finally:
        os.umask(before)
    modes = {
        name: stat.S_IMODE(os.stat(path.parent / name).st_mode) for name in os.listdir(path.parent)
    }
    assert len(modes) == 4
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_pickle_and_copy_reopen_the_file(url: str) -> None:
    cache = filled(f"{url}?max_bytes=70MB", [1])
    for other in (pickle.loads(pickle.dumps(cache)), copy.deepcopy(cache)):
        assert repr(other) == repr(cache)
        assert right(other, [1]) == 1
    assert url in repr(cache)


def test_threads_take_turns(cache: Cache) -> None:
    def work(number: int) -> int:
        had = 0
        for first in range(number * 100, number * 100 + 100, 10):
            cache.put_many(keys(range(first, first + 10)), units(range(first, first + 10)))
            had += right(cache, range(first, first + 10))
        return had

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(work, range(6))) == [100] * 6
    assert right(cache, range(600)) == 600


def test_file_deleted_while_open_is_recreated(cache: Cache, path: Path) -> None:
    cache.put_many(keys([1]), units([1]))
    path.unlink()
    assert right(cache, [1]) == 0
    cache.put_many(keys([2]), units([2]))
    assert right(cache, [1, 2]) == 1
    cache.close()
    assert right(open_cache(f"sqlite://{path}"), [1, 2]) == 1


def test_replaced_file_is_reopened(cache: Cache, path: Path) -> None:
    cache.put_many(keys([1]), units([1]))
    cache.close()
    assert right(cache, [1]) == 1
    other = path.with_name("other.db")
    filled(f"sqlite://{other}", [2])
    other.replace(path)
    assert right(cache, [1, 2]) == 1
    assert right(cache, [2]) == 1


def test_recreated_file_is_private(cache: Cache, path: Path) -> None:
    cache.put_many(keys([1]), units([1]))
    path.unlink()
    cache.put_many(keys([2]), units([2]))
    assert right(cache, [1, 2]) == 1
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file.name


def test_interrupt_while_waiting_for_the_write_lock_loses_nothing(
    cache: Cache, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes after SQLite began the transaction and before anything else."""
    cache.put_many(keys(range(100)), units(range(100)))

    def interrupted(self: Database, *_: object) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Database, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache.put_many(keys([100]), units([100]))
    cache.put_many(keys([101]), units([101]))
    assert right(cache, range(102)) == 101
    assert right(open_cache(url), range(102)) == 101
    assert cache.stats().recovered == 0

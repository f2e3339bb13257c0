"""A cache keeps to its size limit, and evicts what is not used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cache.made import filled, keys, right, units
from cache.processes import process
from emberd.cache import open_cache

LIMIT = 64 * 10**6
LOG_LIMIT = 96 * 10**6
LONG = 4000  # 16 KB a vector
BATCH = 500

WRITER = """
import os, sys
from cache.made import keys, units
from emberd.cache import open_cache
cache = open_cache(sys.argv[1])
vectors = units(range(500), 4000)
for first in range(int(sys.argv[2]), int(sys.argv[2]) + 5000, 500):
    cache.put_many(keys(range(first, first + 500)), vectors)
    print(os.path.getsize(sys.argv[3] + "-wal"))
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/v.db?max_bytes=64MB"


def test_the_file_keeps_to_its_limit_and_what_is_used_stays(url: str, tmp_path: Path) -> None:
    cache = open_cache(url)
    vectors = units(range(BATCH), LONG)
    used = range(50)
    for first in range(0, 20 * BATCH, BATCH):
        cache.put_many(keys(range(first, first + BATCH)), vectors)
        assert right(cache, used, LONG) == len(used)
        assert os.path.getsize(tmp_path / "v.db") <= LIMIT
    entries = cache.stats().entries
    assert entries
    assert 0.3 * LIMIT < entries * LONG * 4 < LIMIT
    # Of the others, the last that were put in.
    newest = cache.get_many(keys(range(19 * BATCH, 20 * BATCH)))
    assert newest.mask.all()
    assert not cache.get_many(keys(range(50, 5 * BATCH))).mask.any()


def test_looking_up_writes_nothing_once_what_is_used_is_marked(url: str, tmp_path: Path) -> None:
    cache = filled(url, range(2500), LONG)
    log = tmp_path / "v.db-wal"
    assert right(cache, range(100), LONG) == 100
    marked = log.stat()
    assert marked.st_size
    for _ in range(5):
        assert right(cache, range(100), LONG) == 100
    assert (log.stat().st_size, log.stat().st_mtime_ns) == (marked.st_size, marked.st_mtime_ns)


def test_two_processes_that_write_at_once_keep_to_the_limit(url: str, tmp_path: Path) -> None:
    path = str(tmp_path / "v.db")
    with process(WRITER, url, "0", path) as one, process(WRITER, url, "100000", path) as other:
        logs = [int(size) for writer in (one, other) for size in writer.communicate()[0].split()]
    assert len(logs) == 20
    assert max(logs) <= LOG_LIMIT
    assert os.path.getsize(path) <= LIMIT
    # Those of the process that wrote last; the others may be evicted by then.
    last = [*range(4500, 5000), *range(104500, 105000)]
    assert open_cache(url).get_many(keys(last)).mask.sum() >= BATCH

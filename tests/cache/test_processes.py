"""Many processes use one file: none loses an entry, even if others are killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
from pathlib import Path
from typing import IO

import pytest

from cache.made import filled, keys, right, units
from cache.processes import process
from emberd.cache import open_cache
from emberd.cache.cache import Cache

# Puts ten at a time, and says how far it came.
WRITER = """
import sys
from cache.made import keys, units
from emberd.cache import open_cache
cache = open_cache(sys.argv[1])
first, last = int(sys.argv[2]), int(sys.argv[3])
vectors, names = units(range(first, last)), keys(range(first, last))
sys.stdin.readline()
for at in range(0, last - first, 10):
    cache.put_many(names[at:at + 10], vectors[at:at + 10])
    print(first + at + 10, flush=True)
"""
KILLS = 8


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite://{tmp_path}/v.db"


def go(*pipes: IO[str] | None) -> None:
    for pipe in pipes:
        assert pipe
        pipe.write("\n")
        pipe.flush()


def test_two_processes_that_write_at_once_lose_nothing(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with process(WRITER, url, "0", "4000") as one, process(WRITER, url, "2000", "6000") as other:
        go(one.stdin, other.stdin)
        assert (one.communicate()[0].split()[-1], other.communicate()[0].split()[-1]) == (
            "4000",
            "6000",
        )
    cache = open_cache(url)
    assert right(cache, range(6000)) == 6000
    assert (cache.stats().entries, cache.stats().recovered) == (6000, 0)
    assert caplog.messages == []


def test_killing_writers_at_any_moment_loses_nothing_that_was_put(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    moments = random.Random(5)
    for killed in range(KILLS):
        first = killed * 1000
        with process(WRITER, url, str(first), str(first + 1000)) as writer:
            go(writer.stdin)
            assert writer.stdout
            told = [writer.stdout.readline() for _ in range(moments.randint(1, 40))]
            writer.kill()
            told += writer.stdout.readlines()
        reached = int([line for line in told if line.endswith("\n")][-1])
        cache = open_cache(url)
        assert right(cache, range(first, reached)) == reached - first
        right(cache, range(first + 1000))
        assert cache.stats().recovered == 0
        cache.close()
    assert caplog.messages == []


def test_a_fork_after_use_leaves_both_sides_a_cache(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = filled(url, range(100))
    assert right(cache, range(100)) == 100
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_use, args=(cache, 1000 * child)) for child in range(1, 4)]
    for child in children:
        child.start()
    _use(cache, 0)
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert right(cache, [*range(300), *range(1000, 1300), *range(3000, 3300)]) == 900
    assert cache.stats().recovered == 0
    assert caplog.messages == []


def _use(cache: Cache, first: int) -> None:
    for at in range(first, first + 300, 20):
        cache.put_many(keys(range(at, at + 20)), units(range(at, at + 20)))
        assert right(cache, range(at, at + 20)) == 20


def test_a_fork_while_a_thread_uses_the_cache_waits_for_it(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = filled(url, range(100))
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            right(cache, range(100))
            cache.put_many(keys(range(100)), units(range(100)))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        codes = [_forked(cache) for _ in range(20)]
    finally:
        stop.set()
        thread.join()
    assert codes == [0] * 20
    assert right(cache, range(100)) == 100
    assert cache.stats().recovered == 0
    assert caplog.messages == []


def _forked(cache: Cache) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if right(cache, range(100)) == 100 else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

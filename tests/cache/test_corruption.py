"""A corrupt file never gives a wrong vector and never fails a call."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from cache.made import filled, keys, right, units
from cache.processes import process
from emberd.cache import open_cache
from emberd.cache.cache import Cache

COUNT = 60  # a few pages of 32 KiB
PAGE = 32768
HEADER = 100


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "v.db"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the bytes of a good file, and of one with its log."""
    path = tmp_path_factory.mktemp("sound") / "v.db"
    cache = filled(f"sqlite://{path}", range(COUNT))
    files = {"closed": path.read_bytes()}
    cache.put_many(keys(range(COUNT, 2 * COUNT)), units(range(COUNT, 2 * COUNT)))
    files["db"] = path.read_bytes()
    files["-wal"] = path.with_name("v.db-wal").read_bytes()
    cache.close()
    return files


def use(path: Path, count: int = COUNT) -> Cache:
    """Read, write and read again: whatever the file contains, no vector is wrong."""
    cache = open_cache(f"sqlite://{path}")
    right(cache, range(count))
    cache.put_many(keys(range(count)), units(range(count)))
    right(cache, range(count))
    cache.close()
    return cache


def works_after_deletion(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first warning names the file, and what to do; no vector is wrong at any time."""
    before = path.read_bytes()
    use(path)
    assert path.read_bytes() == before
    assert caplog.messages[0].startswith(f"Reading the cache {path} failed (")
    assert "delete it together with its -wal and -shm files" in caplog.messages[0]
    for file in path.parent.glob("v.db*"):
        file.unlink()
    is_new(path)


def is_new(path: Path) -> None:
    cache = open_cache(f"sqlite://{path}")
    assert right(cache, range(COUNT)) == 0
    cache.put_many(keys(range(COUNT)), units(range(COUNT)))
    assert right(cache, range(COUNT)) == COUNT
    cache.close()
    assert right(open_cache(f"sqlite://{path}"), range(COUNT)) == COUNT


@pytest.mark.parametrize("part", ["header", "pages", "anywhere"])
def test_flipped_bits_never_give_a_wrong_vector(
    part: str, path: Path, sound: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(part)
    good = sound["closed"]
    for _ in range(100):
        start = {"header": 0, "pages": chance.randrange(len(good) // PAGE) * PAGE, "anywhere": 0}[
            part
        ]
        length = {"header": HEADER, "pages": 64, "anywhere": len(good)}[part]
        broken = bytearray(good)
        broken[start + chance.randrange(length)] ^= 1 << chance.randrange(8)
        path.with_name("v.db-wal").unlink(missing_ok=True)
        path.with_name("v.db-shm").unlink(missing_ok=True)
        path.write_bytes(broken)
        use(path)


def test_bit_flipped_in_a_vector_loses_only_that_vector(
    path: Path, sound: dict[str, bytes]
) -> None:
    broken = bytearray(sound["closed"])
    broken[broken.index(units([7]).tobytes()) + 99] ^= 4
    path.write_bytes(broken)
    cache = open_cache(f"sqlite://{path}")
    assert right(cache, range(COUNT)) == COUNT - 1
    assert cache.stats().recovered == 1
    assert right(cache, range(COUNT)) == COUNT - 1
    assert (cache.stats().recovered, cache.stats().entries) == (1, COUNT - 1)
    cache.put_many(keys([7]), units([7]))
    assert right(cache, range(COUNT)) == COUNT


@pytest.mark.parametrize("kept", [2, 15, 16, 99, 100, 1000, PAGE, PAGE + 1, 3 * PAGE, 5 * PAGE - 7])
def test_truncated_file_costs_only_the_cache(
    kept: int, path: Path, sound: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(sound["closed"][:kept])
    works_after_deletion(path, caplog)


@pytest.mark.parametrize("length", [0, 1])
def test_empty_file_is_a_new_one(length: int, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_bytes(bytes(length))
    is_new(path)
    assert caplog.messages == []


@pytest.mark.parametrize(
    "content", [b"SQLite format 3\0", b"\0" * PAGE, b"%PDF-1.7 of somebody's" * 99]
)
def test_file_that_never_was_a_cache_is_not_modified(
    content: bytes, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(content)
    works_after_deletion(path, caplog)


def test_database_of_another_program_is_not_modified(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE entries (id INTEGER)")
    other.close()
    before = path.read_bytes()
    use(path)
    use(path)
    assert path.read_bytes() == before
    assert "a database of another program" in caplog.messages[0]


@pytest.mark.parametrize("length", [0, 10, 32, 33, 5000, 40000])
def test_a_truncated_log_loses_at_most_what_it_held(
    length: int, path: Path, sound: dict[str, bytes]
) -> None:
    path.write_bytes(sound["db"])
    path.with_name("v.db-wal").write_bytes(sound["-wal"][:length])
    assert right(open_cache(f"sqlite://{path}"), range(2 * COUNT)) >= COUNT
    use(path, 2 * COUNT)


def test_a_log_of_rubbish_never_gives_a_wrong_vector(path: Path, sound: dict[str, bytes]) -> None:
    chance = random.Random(3)
    for _ in range(40):
        log = bytearray(sound["-wal"])
        at = chance.randrange(len(log))
        log[at : at + 64] = chance.randbytes(64)
        path.write_bytes(sound["db"])
        path.with_name("v.db-wal").write_bytes(log)
        path.with_name("v.db-shm").unlink(missing_ok=True)
        use(path, 2 * COUNT)
    path.with_name("v.db-wal").write_bytes(chance.randbytes(100_000))
    use(path)


def test_missing_table_costs_only_the_cache(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(f"sqlite://{path}", range(COUNT))
    with sqlite3.connect(path) as other:
        other.execute("DROP TABLE vectors")
    other.close()
    works_after_deletion(path, caplog)


OTHER = """
import sys
from cache.made import keys, right, units
from emberd.cache import open_cache
cache = open_cache(sys.argv[1])
for line in sys.stdin:
    first = int(line)
    cache.put_many(keys(range(first, first + 10)), units(range(first, first + 10)))
    print(right(cache, range(first, first + 10)), flush=True)
"""


def test_process_with_the_deleted_file_open_continues_with_the_new_one(path: Path) -> None:
    url = f"sqlite://{path}"
    filled(url, range(10))
    with process(OTHER, url) as other:

        def put(first: int) -> None:
            assert other.stdin
            assert other.stdout
            other.stdin.write(f"{first}\n")
            other.stdin.flush()
            assert other.stdout.readline() == "10\n"

        put(10)
        path.unlink()
        is_new(path)
        put(1000)
        put(1010)
        cache = open_cache(url)
        assert right(cache, range(1000, 1020)) == 20
        assert right(cache, range(COUNT)) == COUNT

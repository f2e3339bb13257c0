"""A file that cannot be used causes one warning; embedding continues without the cache."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cache.made import filled, keys, right, units
from emberd.cache import open_cache
from emberd.cache.cache import CircuitBreaker
from managed import environment

# As a user who may not write there, also if root runs the tests.
READ_ONLY = """
import os, sys
from cache.made import keys, right, units
from emberd.cache import open_cache
cache = open_cache(sys.argv[1])
vectors = units(range(5))
if os.geteuid() == 0:
    os.setegid(65534)
    os.seteuid(65534)
for _ in range(3):
    cache.put_many(keys(range(5)), vectors)
    print(right(cache, range(5)), cache.stats().misses)
"""
FULL = """
import resource, sys
from cache.made import keys, right, units
from emberd.cache import open_cache
cache = open_cache(sys.argv[1])
assert right(cache, range(50)) == 50
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
for _ in range(3):
    cache.put_many(keys(range(50, 1000)), units(range(50, 1000)))
    print(right(cache, range(1000)))
"""


def run(program: str, url: str) -> tuple[list[str], list[str]]:
    ended = subprocess.run(
        [sys.executable, "-c", program, url], env=environment(), capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines(), ended.stderr.splitlines()


def test_read_only_folder_causes_one_warning(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    for above in (tmp_path, *tmp_path.parents[:3]):
        if above.stat().st_uid == os.geteuid():
            above.chmod(above.stat().st_mode | 0o055)
    printed, warned = run(READ_ONLY, f"sqlite://{folder}/v.db")
    assert printed == ["0 5", "0 10", "0 15"]
    assert len(warned) == 1
    assert f"Writing to the cache {folder}/v.db failed" in warned[0]
    assert "Permission denied" in warned[0]


def test_full_disk_loses_new_entries_only(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/v.db"
    filled(url, range(50))
    printed, warned = run(FULL, url)
    assert printed == ["50", "50", "50"]
    assert len(warned) == 1
    assert "Writing to the cache" in warned[0]
    cache = open_cache(url)
    assert right(cache, range(1000)) == 50
    cache.put_many(keys(range(1000)), units(range(1000)))
    assert right(cache, range(1000)) == 1000
    assert cache.stats().recovered == 0


def test_path_through_a_file_causes_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    cache = open_cache(f"sqlite://{tmp_path}/file/v.db")
    cache.put_many(keys([1]), units([1]))
    assert right(cache, [1]) == 0
    assert cache.stats().entries in (None, 0)
    assert len(caplog.messages) == 1


def test_circuit_breaker_warns_once_per_outage_and_once_at_its_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emberd.cache.cache.RETRY_AFTER_S", 0.0)
    caplog.set_level(logging.WARNING, "emberd")
    breaker = CircuitBreaker("Reading it")
    breaker.record_success()
    for _ in range(3):
        breaker.record_failure("gone")
        assert not breaker.is_open
    breaker.record_success()
    breaker.record_success()
    assert [said.partition(" (")[0] for said in caplog.messages] == [
        "Reading it failed",
        "Reading it works again.",
    ]
    monkeypatch.setattr("emberd.cache.cache.RETRY_AFTER_S", 1000.0)
    breaker.record_failure("gone")
    assert breaker.is_open

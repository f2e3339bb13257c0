"""Memory, tasks and cores within the limits of control groups."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from emberd.system import capacity
from emberd.system.capacity import Limit

GIB = 1 << 30


@pytest.fixture
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file system of the control groups, and a machine with 64 GiB of which 32 are free."""
    meminfo = f"MemTotal: {64 << 20} kB\nMemFree: 1 kB\nMemAvailable:   {32 << 20} kB\n"
    (tmp_path / "meminfo").write_text(meminfo)
    (tmp_path / "own").write_text("0::/outer/inner\n")
    monkeypatch.setattr(capacity, "_MEMORY_FILE", tmp_path / "meminfo")
    monkeypatch.setattr(capacity, "_OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(capacity, "_CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(sys, "platform", "linux")
    (tmp_path / "groups" / "outer" / "inner").mkdir(parents=True)
    return tmp_path / "groups"


def write(folder: Path, **content: object) -> None:
    """Write files of a control group; the first ``_`` of a name stands for a dot."""
    for name, text in content.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{text}\n")


def test_without_limits_the_memory_is_that_of_the_machine(top: Path) -> None:
    assert capacity.machine_memory() == Limit(64 * GIB, 32 * GIB)
    assert (capacity.memory_limit(), capacity.free_memory()) == (None, 32 * GIB)


@pytest.mark.parametrize("name", ["memory_max", "memory_high"])
def test_the_group_with_the_least_free_memory_counts(top: Path, name: str) -> None:
    outer = top / "outer"
    write(outer / "inner", **{name: "max"}, memory_current=GIB)
    write(outer, **{name: 8 * GIB}, memory_current=6 * GIB)
    write(top, **{name: 5 * GIB}, memory_current=2 * GIB)
    assert capacity.memory_limit() == Limit(8 * GIB, 2 * GIB)
    assert capacity.free_memory() == 2 * GIB


def test_pages_of_files_are_free_unless_they_must_be_written(top: Path) -> None:
    write(top, memory_max=8 * GIB, memory_current=7 * GIB)
    stat = f"anon {GIB}\nactive_file {GIB}\ninactive_file {4 * GIB}\nfile_dirty {GIB}"
    write(top, memory_stat=stat)
    assert capacity.free_memory() == 5 * GIB


def test_the_machine_limits_a_group_that_may_use_more(top: Path) -> None:
    write(top, memory_max=48 * GIB, memory_current=GIB)
    assert capacity.free_memory() == 32 * GIB


def test_an_exceeded_limit_leaves_nothing(top: Path) -> None:
    write(top, memory_high=GIB, memory_current=2 * GIB)
    assert capacity.free_memory() == 0


def test_limits_of_version_1_count(top: Path, tmp_path: Path) -> None:
    (tmp_path / "own").write_text("4:memory:/outer\n2:cpu,cpuacct:/outer\n1:pids:/outer\n0::/\n")
    for controller in ("memory", "cpu", "pids"):
        (top / controller / "outer").mkdir(parents=True)
    memory, cpu, pids = (top / name / "outer" for name in ("memory", "cpu", "pids"))
    write(memory, memory_limit_in_bytes=4 * GIB, memory_usage_in_bytes=3 * GIB)
    stat = f"active_file 7\ninactive_file 7\ntotal_active_file {GIB}\ntotal_inactive_file 0\n"
    write(memory, memory_stat=f"{stat}total_dirty 0\ntotal_writeback 0")
    write(memory.parent, memory_limit_in_bytes=(1 << 63) - 4096, memory_usage_in_bytes=GIB)
    (cpu / "cpu.cfs_quota_us").write_text("150000\n")
    (cpu / "cpu.cfs_period_us").write_text("100000\n")
    (cpu.parent / "cpu.cfs_quota_us").write_text("-1\n")
    (cpu.parent / "cpu.cfs_period_us").write_text("100000\n")
    write(pids, pids_max=100, pids_current=60)
    assert capacity.memory_limit() == Limit(4 * GIB, 2 * GIB)
    assert capacity.task_limit() == Limit(100, 40)
    assert capacity.cores() == min(2, len(os.sched_getaffinity(0)))


def test_a_path_of_the_host_that_a_container_does_not_see_is_skipped(
    top: Path, tmp_path: Path
) -> None:
    (tmp_path / "own").write_text("0::/docker/0123456789ab\n")
    write(top, memory_max=GIB, memory_current=0, pids_max=9, pids_current=2)
    assert (capacity.free_memory(), capacity.task_limit()) == (GIB, Limit(9, 7))


def test_memory_that_cannot_be_read_is_unknown(top: Path, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 8 kB\n")
    assert capacity.machine_memory() is None
    (tmp_path / "meminfo").unlink()
    (tmp_path / "own").unlink()
    assert (capacity.free_memory(), capacity.memory_limit()) == (None, None)


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("50000 100000", 1),
        ("max 100000", 64),
        ("nonsense", 64),
    ],
)
def test_the_quota_of_a_container_bounds_the_cores(
    top: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    write(top, cpu_max=quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    assert capacity.cores() == cores


def test_without_a_quota_the_cores_are_those_that_the_process_may_run_on(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5, 7}, raising=False)
    assert capacity.cores() == 3


@pytest.mark.skipif(sys.platform != "linux", reason="psutil is needed elsewhere")
def test_the_memory_of_this_machine_is_read_without_psutil() -> None:
    code = (
        "import sys; sys.modules['psutil'] = None\n"
        "from emberd.system import capacity; seen = capacity.machine_memory()\n"
        "assert 0 < capacity.free_memory() <= seen.limit and 0 < seen.free <= seen.limit\n"
        "assert capacity.cores() > 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_proc_psutil_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    seen = capacity.machine_memory()
    assert seen is not None
    assert 0 < seen.free <= seen.limit
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert capacity.free_memory() is None

"""What a server uses of its GPU is compared with its plan, and kept if it is more."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emberd.engines.gpu_usage import PlannedUsage, Usage, read
from emberd.system import processes
from fake_nvml import GIB, Card, Nvml

KIND = {"gpu": "NVIDIA A10G", "sglang": "0.5.23", "shape": {"layers": 36}}
OURS = (100, 101)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    made = Nvml([Card("GPU-a"), Card("GPU-b")])
    monkeypatch.setitem(sys.modules, "pynvml", made)
    monkeypatch.setattr(processes, "has_pids_of_host", lambda: True)
    return made


def holding(*sizes_gib: float | None, pid: int = OURS[0]) -> list[Any]:
    return [
        SimpleNamespace(pid=number, usedGpuMemory=None if size is None else int(size * GIB))
        for number, size in enumerate(sizes_gib, pid)
    ]


def started(home: Path, planned_gib: float, *gpus: str, kind: dict[str, Any] = KIND) -> Usage:
    """Compare a start with its plan, and return what is kept then."""
    planned = PlannedUsage(read(home, kind), gpus or ("GPU-a",), int(planned_gib * GIB))
    planned.compare(OURS)
    return read(home, kind)


def test_without_an_earlier_start_nothing_is_added(tmp_path: Path) -> None:
    usage = read(tmp_path, KIND)
    assert (usage.used_bytes, usage.extra_bytes, usage.notes, usage.in_words()) == (0, 0, (), None)
    assert list(tmp_path.iterdir()) == []


def test_what_was_used_beyond_the_plan_is_added_to_the_next_one(nvml: Nvml, tmp_path: Path) -> None:
    nvml.holders = {"GPU-a": holding(17, 2)}
    usage = started(tmp_path, 18)
    assert (usage.used_bytes, usage.extra_bytes) == (19 * GIB, GIB)
    what, why = usage.in_words() or ("", "")
    assert "19.0 GiB" in what
    assert "18.0 GiB" in why
    assert nvml.open == 0


def test_a_start_that_used_less_makes_no_plan_smaller(nvml: Nvml, tmp_path: Path) -> None:
    nvml.holders = {"GPU-a": holding(17)}
    usage = started(tmp_path, 18)
    assert (usage.used_bytes, usage.extra_bytes) == (17 * GIB, 0)
    assert usage.in_words()


def test_the_start_with_the_largest_difference_is_kept(nvml: Nvml, tmp_path: Path) -> None:
    extra = []
    for used_gib, planned_gib in ((17, 18), (20, 18), (18.5, 18), (22, 21)):
        nvml.holders = {"GPU-a": holding(used_gib)}
        extra.append(started(tmp_path, planned_gib).extra_bytes / GIB)
    assert extra == [0, 2, 2, 2]


def test_other_processes_on_the_card_do_not_count(nvml: Nvml, tmp_path: Path) -> None:
    nvml.holders = {"GPU-a": [*holding(17), *holding(40, pid=7)]}
    assert started(tmp_path, 18).used_bytes == 17 * GIB


def test_of_several_gpus_the_fullest_counts(nvml: Nvml, tmp_path: Path) -> None:
    nvml.holders = {"GPU-a": holding(9), "GPU-b": holding(11, pid=OURS[1])}
    assert started(tmp_path, 10, "GPU-a", "GPU-b").extra_bytes == GIB


@pytest.mark.parametrize(
    "holders",
    [
        {},
        {"GPU-a": holding(40, pid=7)},
        {"GPU-a": holding(40, None)},
        {"GPU-b": holding(40)},
    ],
    ids=["nothing", "only others", "not reported", "another GPU"],
)
def test_nothing_is_kept_if_the_memory_of_the_processes_is_not_known(
    nvml: Nvml, tmp_path: Path, holders: dict[str, list[Any]]
) -> None:
    nvml.holders = holders
    assert started(tmp_path, 18).used_bytes == 0


def test_nothing_is_kept_in_a_container_whose_pids_are_not_those_of_the_driver(
    nvml: Nvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml.holders = {"GPU-a": holding(40)}
    monkeypatch.setattr(processes, "has_pids_of_host", lambda: False)
    assert started(tmp_path, 18).used_bytes == 0


def test_a_driver_that_does_not_answer_is_no_error(nvml: Nvml, tmp_path: Path) -> None:
    nvml.init_error = 9
    assert started(tmp_path, 18).used_bytes == 0


def test_a_folder_that_cannot_be_written_is_no_error(nvml: Nvml, tmp_path: Path) -> None:
    nvml.holders = {"GPU-a": holding(40)}
    (tmp_path / "gpu-memory").touch()
    assert started(tmp_path, 18).used_bytes == 0


@pytest.mark.parametrize(
    "other",
    [
        {"gpu": "NVIDIA L4"},
        {"sglang": "0.5.22"},
        {"shape": {"layers": 28}},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_difference_is_kept_for_one_kind_of_server(
    nvml: Nvml, tmp_path: Path, other: dict[str, Any]
) -> None:
    nvml.holders = {"GPU-a": holding(20)}
    assert started(tmp_path, 18).extra_bytes == 2 * GIB
    assert read(tmp_path, {**KIND, **other}).extra_bytes == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\x00",
        b"[]",
        b"{}",
        b"[" * 10_000,
        {"kind": {**KIND, "gpu": "NVIDIA L4"}},
        {"used_bytes": "20"},
        {"used_bytes": -1},
        {"planned_bytes": 1.5},
        {"planned_bytes": True},
    ],
    ids=str,
)
def test_a_damaged_file_is_ignored_with_a_note_and_replaced_by_the_next_start(
    nvml: Nvml, tmp_path: Path, content: bytes | dict[str, Any]
) -> None:
    nvml.holders = {"GPU-a": holding(20)}
    file = started(tmp_path, 18).file
    if isinstance(content, dict):
        content = json.dumps({**json.loads(file.read_bytes()), **content}).encode()
    file.write_bytes(content)
    usage = read(tmp_path, KIND)
    assert usage.extra_bytes == 0
    [note] = usage.notes
    assert str(file) in note
    assert started(tmp_path, 18).extra_bytes == 2 * GIB


def test_a_file_that_others_can_write_is_ignored(nvml: Nvml, tmp_path: Path) -> None:
    nvml.holders = {"GPU-a": holding(20)}
    file = started(tmp_path, 18).file
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o666)
    assert read(tmp_path, KIND).extra_bytes == 0
    file.unlink()
    os.mkfifo(file)
    assert read(tmp_path, KIND).notes

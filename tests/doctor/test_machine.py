"""Memory, shared memory and limits, of a container too."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import examined
from emberd.doctor import host
from emberd.doctor.findings import Finding, Level
from emberd.settings import StartOptions
from emberd.system import capacity
from emberd.system.capacity import Limit

MIB = 1 << 20
GIB = 1 << 30


def look(tmp_path: Path, **more: Any) -> list[Finding]:
    return list(host.check_limits(examined.wanted(tmp_path, **more)))


def test_little_memory_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "machine_memory", lambda: Limit(8 * GIB, GIB))
    found = examined.named(look(tmp_path), "memory")
    assert found.level is Level.NOTE
    assert found.fact.startswith("1.1 GB of 8.6 GB available")


def test_unknown_memory_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "machine_memory", lambda: None)
    assert examined.named(look(tmp_path), "memory").level is Level.NOTE


@pytest.mark.parametrize(("free", "level"), [(3, Level.NOTE), (62, Level.OK)])
def test_the_memory_that_a_container_may_still_use_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, level: Level
) -> None:
    monkeypatch.setattr(capacity, "memory_limit", lambda: Limit(64 * GIB, free * GIB))
    found = examined.named(look(tmp_path), "memory limit")
    assert found.level is level
    assert f"{free * GIB / 1e9:.1f} GB left" in found.fact


def test_a_limit_of_processes_that_is_nearly_reached_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "task_limit", lambda: Limit(512, 472))
    assert examined.named(look(tmp_path), "task limit").fact.startswith("40 of 512")


def test_without_limits_nothing_is_said_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity, "memory_limit", lambda: None)
    monkeypatch.setattr(capacity, "task_limit", lambda: None)
    assert not [f for f in look(tmp_path) if f.name in ("memory limit", "task limit")]


@pytest.mark.parametrize(
    ("tp_size", "free", "level"),
    [(1, 32 * MIB, Level.NOTE), (1, 128 * MIB, Level.OK), (2, 128 * MIB, Level.NOTE)],
)
def test_a_model_on_several_gpus_wants_more_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tp_size: int, free: int, level: Level
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=free, f_frsize=1))
    found = look(tmp_path, options=StartOptions(tp_size=tp_size))
    assert examined.named(found, "shared memory").level is level


def test_low_limits_are_noted_with_the_command_that_raises_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    found = examined.named(look(tmp_path), "limits")
    assert found.fact.startswith("ulimit -n 256 and ulimit -u 256")
    assert found.advice == "ulimit -n 1024; ulimit -u 1024"


def test_unlimited_is_not_low(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, 0))
    found = examined.named(look(tmp_path), "limits")
    assert (found.level, found.fact) == (Level.OK, "open files unlimited, processes unlimited")

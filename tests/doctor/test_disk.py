"""Disks: what has to fit on each, and which does not answer."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

import examined
from emberd import engines
from emberd.doctor import host
from emberd.doctor.findings import Level
from emberd.doctor.host import Filesystem
from emberd.manager import cleanup
from emberd.settings import StartOptions

GB = 1_000_000_000
MODEL = "somebody/Model-4B"


@pytest.fixture(autouse=True)
def _no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def grounds(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    """Let every path lie on the same disk."""
    usual = {"kind": "ext4", "free_bytes": 100 * GB, "inodes": 9, "writable": True}
    monkeypatch.setattr(
        host, "filesystem_of", lambda path: Filesystem(path=path, **{**usual, **fields})
    )


def test_with_room_everywhere_nothing_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grounds(monkeypatch)
    found = list(host.check_disks(examined.wanted(tmp_path, MODEL)))
    assert examined.worse(found) == []
    assert [f.name for f in found] == ["home", "engines", "hub's cache", "temporary files"]


def test_weights_that_do_not_fit_are_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grounds(monkeypatch, free_bytes=5 * GB)
    [found] = examined.worse(host.check_disks(examined.wanted(tmp_path, MODEL)))
    assert (found.level, found.name) == (Level.PROBLEM, "hub's cache")
    assert f"about 8.0 GB needed for {MODEL}" in found.fact
    assert "HF_HOME" in found.advice


def test_nothing_is_downloaded_beside_a_server_that_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grounds(monkeypatch, free_bytes=5 * GB)
    asked = examined.wanted(tmp_path, MODEL, base_url="http://127.0.0.1:9")
    assert examined.worse(host.check_disks(asked)) == []


@pytest.mark.parametrize("elsewhere", [{"SGLANG_USE_MODELSCOPE": "1"}, {}])
def test_weights_that_the_engine_keeps_elsewhere_need_no_room_in_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: dict[str, str]
) -> None:
    grounds(monkeypatch, free_bytes=5 * GB)
    sglang = engines.load("sglang")
    monkeypatch.setattr(engines, "explain", lambda _: engines.Choice(sglang, None, {}))
    for name, text in elsewhere.items():
        monkeypatch.setenv(name, text)
    arguments = () if elsewhere else ("--download-dir", "/models")
    asked = examined.wanted(tmp_path, MODEL, options=StartOptions(arguments=arguments))
    assert examined.worse(host.check_disks(asked)) == []


def test_an_engine_that_is_to_be_installed_needs_its_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grounds(monkeypatch, free_bytes=10 * GB)
    choice = engines.Choice(None, "sglang", {})
    monkeypatch.setattr(engines, "explain", lambda _: choice)
    [lacks] = examined.worse(host.check_disks(examined.wanted(tmp_path)))
    assert lacks.name == "engines"
    assert "about 17.4 GB needed for the engine sglang" in lacks.fact
    assert "EMBERD_ENGINES" in lacks.advice


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"inodes": 0}, "has no free inodes"),
        ({"writable": False}, "is not writable"),
    ],
)
def test_a_disk_that_takes_no_files_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], says: str
) -> None:
    grounds(monkeypatch, **fields)
    found = examined.worse(host.check_disks(examined.wanted(tmp_path)))
    assert "home" in {f.name for f in found}
    assert all(says in f.fact for f in found)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The disk of the hub's cache is away."""
    away = threading.Event()
    real = host.filesystem_of

    def look(path: Path) -> Filesystem:
        if path.name == "hub":
            away.wait()
        return real(path)

    monkeypatch.setattr(host, "_SECONDS", 0.3)
    monkeypatch.setattr(host, "filesystem_of", look)
    yield
    away.set()


def test_a_disk_that_hangs_does_not_hide_the_others(hanging: None, tmp_path: Path) -> None:
    found = list(host.check_disks(examined.wanted(tmp_path)))
    assert len(found) == 4
    assert "does not respond" in examined.named(found, "hub's cache").fact
    assert examined.named(found, "home").level is Level.OK


LONG = "/tmp" + "/long" * 20


def _use_long_tmpdir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", LONG)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: LONG)


def test_a_long_path_for_temporary_files_is_noted_with_the_folder_that_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use_long_tmpdir(monkeypatch)
    *_, found = host.check_disks(examined.wanted(tmp_path))
    assert found.advice == "export TMPDIR=/tmp"
    assert cleanup.temporary_folder() == "/tmp"


def test_a_long_path_without_another_folder_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use_long_tmpdir(monkeypatch)
    monkeypatch.setattr(os, "access", lambda *_: False)
    *_, found = host.check_disks(examined.wanted(tmp_path))
    assert found.level is Level.PROBLEM
    assert LONG in found.fact


def test_what_is_not_there_lies_on_what_is_above_it(tmp_path: Path) -> None:
    found = host.filesystem_of(tmp_path / "a" / "b")
    assert (found.path, found.writable) == (tmp_path, True)
    assert found.free_bytes > 0


def test_the_file_system_is_that_of_the_nearest_mount_and_the_last_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = [
        ("/", "ext4"),
        (str(tmp_path), "xfs"),
        (str(tmp_path), "nfs4"),
        (f"{tmp_path}x", "9p"),
    ]
    listed = [SimpleNamespace(mountpoint=place, fstype=kind) for place, kind in mounts]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: listed)
    assert host.filesystem_of(tmp_path).kind == "nfs4"
    assert host.filesystem_of(tmp_path).is_shared
    assert host.filesystem_of(tmp_path.parent).kind == "ext4"

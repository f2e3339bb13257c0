"""The home: whose it is, whether its locks hold, whether its clock is this machine's."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

import pytest

import examined
from emberd.doctor import servers
from emberd.doctor.findings import Finding, Level
from emberd.doctor.host import Filesystem
from emberd.manager.paths import Home


def look(home: Path) -> list[Finding]:
    return list(servers.check_state(examined.wanted(home)))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "home"
    made.mkdir(mode=0o700)
    return made


def test_a_good_home_is_left_as_it_was(home: Path) -> None:
    assert examined.worse(look(home)) == []
    assert list(home.iterdir()) == []


def test_a_home_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    found = look(tmp_path / "none" / "home")
    assert examined.worse(found) == []
    assert "does not exist yet" in examined.named(found, "home").fact
    assert list(tmp_path.iterdir()) == []


def test_a_home_that_others_may_write_to_is_noted(home: Path) -> None:
    home.chmod(0o777)
    found = examined.named(look(home), "home")
    assert (found.level, found.advice) == (Level.NOTE, f"chmod 700 {home}")


def test_a_home_that_is_a_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    assert "is not a folder" in examined.worse(look(tmp_path / "home"))[0].fact


def test_a_state_folder_that_is_open_to_others_is_a_problem(home: Path) -> None:
    servers = Home(home).servers
    servers.mkdir(parents=True, mode=0o700)
    Home(home).machine.chmod(0o755)
    found = examined.named(look(home), "state folder")
    assert found.level is Level.PROBLEM
    assert found.advice == f"Run: chmod 700 {Home(home).machine}"


def test_the_folder_of_another_models_server_is_no_problem_of_this_one(home: Path) -> None:
    other = Home(home).server_folder("0123456789abcdef")
    other.mkdir(parents=True)
    for folder in (Home(home).machine, Home(home).servers):
        folder.chmod(0o700)
    other.chmod(0o777)
    assert examined.named(look(home), "state folder").level is Level.NOTE


def test_a_file_system_without_locks_is_a_problem(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    found = examined.named(look(home), "locks")
    assert (found.level, found.fact) == (
        Level.PROBLEM,
        "file locks do not work (No locks available)",
    )


def test_locks_that_everybody_gets_are_a_problem(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    assert examined.named(look(home), "locks").level is Level.PROBLEM


def test_a_network_disk_is_noted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = Filesystem(path=home, kind="nfs4", free_bytes=1, inodes=None, writable=True)
    monkeypatch.setattr(servers, "filesystem_of", lambda _: there)
    found = examined.named(look(home), "file system")
    assert found.level is Level.NOTE
    assert "is on nfs4" in found.fact


def test_a_home_that_cannot_be_written_is_a_problem(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Filesystem(path=home, kind="ext4", free_bytes=1, inodes=None, writable=False)
    monkeypatch.setattr(servers, "filesystem_of", lambda _: there)
    assert "is not writable" in examined.worse(look(home))[0].fact


@pytest.mark.parametrize(("off_s", "level"), [(90, Level.NOTE), (-90, Level.NOTE), (0, Level.OK)])
def test_files_with_another_machines_time_are_noted(
    home: Path, monkeypatch: pytest.MonkeyPatch, off_s: float, level: Level
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - off_s)
    found = examined.named(look(home), "clock")
    assert found.level is level
    assert level is Level.OK or f"{off_s:+} s" in found.fact


def test_a_clock_before_emberds_time_is_noted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 86_400.0)
    assert "1970-01-02" in examined.named(look(home), "clock").fact


def test_somebody_elses_home_is_noted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: home.stat().st_uid + 1)
    assert "belongs to user" in examined.named(look(home), "home").fact

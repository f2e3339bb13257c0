"""A disk that is full or read-only, paths and permissions that cannot be used, no descriptor left.

Each is an `EmberdError` that names the path and what to do; a server that runs goes on, can be used
and stopped, and nothing is left. The disk is real: a small tmpfs.
"""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import leftovers
import other_user
import waiting
from command import Command
from emberd.embedder import Embedder
from emberd.errors import EmberdError, StateFolderError
from emberd.manager import State
from emberd.verified_manager import Manager
from homes import QUICK, Stub, begin
from other_user import needs_root
from plain_client import embed
from small_disk import Disk, disk

__all__ = ["disk"]

UP = ("up", "--model", "stub/ok", "--engine", "stubs.engine")


@pytest.fixture
def managers(disk: Disk) -> Iterator[Manager]:
    """A manager whose home is on the small disk; nothing that it started may be left."""
    made = Manager(disk.folder / "home", timing=QUICK)
    yield made
    disk.remount("rw")
    disk.free()
    made.stop()
    assert leftovers.end_all([str(disk.folder)]) == []


def named(raised: pytest.ExceptionInfo[EmberdError], path: Path) -> None:
    """Check that the error names the path, and what to do in a sentence after the fact."""
    text = str(raised.value)
    assert str(path) in text
    assert ". " in text


# ---------------------------------------------------------------- a disk that is full


def test_start_on_a_full_disk_is_an_error_and_works_when_there_is_space(
    disk: Disk, managers: Manager, stub: Stub
) -> None:
    disk.fill()
    with pytest.raises(EmberdError, match="No space left") as raised:
        managers.ensure(stub())
    named(raised, disk.folder)
    assert managers.status() == []
    disk.free()
    assert managers.ensure(stub()).started


def test_first_use_of_an_embedder_on_a_full_disk_is_an_error(
    disk: Disk, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.fill()
    monkeypatch.setenv("EMBERD_HOME", str(disk.folder / "home"))
    spec = stub()
    embedder = Embedder(
        spec.model, engine=spec.engine, query_instruction="", document_instruction=""
    )
    with pytest.raises(StateFolderError, match="No space left") as raised:
        embedder.embed_query("hello")
    named(raised, disk.folder)


def test_server_is_used_and_stopped_although_its_disk_was_filled(
    disk: Disk, managers: Manager, stub: Stub
) -> None:
    server = managers.ensure(stub())
    disk.fill()
    again = managers.ensure(stub(), idle_timeout=1)
    assert (again.start_id, again.started) == (server.start_id, False)
    assert managers.is_current(server)
    managers.used(server)
    managers.report_unresponsive(server)
    assert embed(server, "hello").status_code == 200
    assert managers.find(stub()) is not None
    assert [status.state for status in managers.status()] == [State.READY]
    assert [was.start_id for was in managers.stop()] == [server.start_id]
    assert leftovers.end_all([str(server.folder)]) == []
    disk.free()
    assert managers.ensure(stub()).started


def test_disk_that_fills_during_a_start_is_an_error_and_leaves_nothing(
    disk: Disk, managers: Manager, stub: Stub, tmp_path: Path
) -> None:
    spec = stub(start_when=tmp_path / "go")
    begin(managers, spec)
    disk.fill()
    (tmp_path / "go").touch()
    with pytest.raises(EmberdError) as raised:
        managers.ensure(spec, start_timeout=20)
    named(raised, disk.folder)
    waiting.until(lambda: not leftovers.find([str(disk.folder)]))
    disk.free()
    assert managers.ensure(spec, retry_failed=True).started


@pytest.mark.parametrize("arguments", [UP, ("up", "--model", "stub/ok?start=1", *UP[3:])])
def test_command_on_a_full_disk_says_what_to_do(disk: Disk, arguments: tuple[str, ...]) -> None:
    disk.fill()
    command = Command(disk.folder / "home")
    for verb in (arguments, ("embed", "-t", "one", *UP[1:])):
        done = command(*verb)
        assert done.code not in (0, None)
        assert str(disk.folder) in done.err
        assert "No space left" in done.err
        assert "df" in done.err
    assert command("status").code == 3
    assert command("stop").code in (0, 3)


# ---------------------------------------------------------------- a disk that is read-only


def test_start_on_a_read_only_disk_is_an_error(disk: Disk, managers: Manager, stub: Stub) -> None:
    disk.remount("ro")
    with pytest.raises(EmberdError, match="Read-only") as raised:
        managers.ensure(stub())
    named(raised, disk.folder)
    assert managers.status() == []
    assert managers.stop() == []


def test_server_is_seen_and_used_through_a_read_only_mount(
    disk: Disk, managers: Manager, stub: Stub, tmp_path: Path
) -> None:
    """As in a container whose volume is read-only."""
    server = managers.ensure(stub())
    view = tmp_path / "view"
    view.mkdir()
    subprocess.run(["mount", "--bind", disk.folder, view], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", view], check=True)
        seeing = Manager(view / "home", timing=QUICK)
        assert [status.state for status in seeing.status()] == [State.READY]
        for found in (seeing.find(stub()), seeing.ensure(stub())):
            assert found is not None
            assert found.start_id == server.start_id
            assert seeing.is_current(found)
            seeing.used(found)
            seeing.report_unresponsive(found)
        with pytest.raises(StateFolderError, match="Read-only") as raised:
            seeing.ensure(stub(), idle_timeout="10h")
        named(raised, view)
        with pytest.raises(StateFolderError, match="Read-only"):
            seeing.ensure(stub("other"))
    finally:
        subprocess.run(["umount", view], check=True)


def test_start_beside_an_old_server_on_a_read_only_disk_is_an_error(
    disk: Disk, managers: Manager, stub: Stub
) -> None:
    managers.ensure(stub())
    managers.stop()
    disk.remount("ro")
    with pytest.raises(EmberdError, match="Read-only") as raised:
        managers.ensure(stub())
    named(raised, disk.folder)
    assert [status.state for status in managers.status()] == [State.ABSENT]
    assert managers.stop() == []


# ---------------------------------------------------------------- paths and permissions


@pytest.mark.parametrize("name", ["x" * 300, "/".join(["y" * 200] * 30)])
def test_home_whose_path_is_too_long_is_an_error(tmp_path: Path, stub: Stub, name: str) -> None:
    manager = Manager(tmp_path / name, timing=QUICK)
    calls: list[Callable[[], object]] = [
        lambda: manager.ensure(stub()),
        lambda: manager.find(stub()),
        manager.status,
        manager.stop,
    ]
    for call in calls:
        with pytest.raises(StateFolderError, match="too long") as raised:
            call()
        named(raised, tmp_path)
    done = Command(tmp_path / name)(*UP)
    assert done.code
    assert "too long" in done.err


@needs_root
@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_home_that_this_user_may_not_write_or_read_is_an_error(
    tmp_path: Path, stub: Stub, mode: int
) -> None:
    folder = other_user.reachable(tmp_path) / "roots"
    folder.mkdir(mode=mode)
    folder.chmod(mode)
    manager, spec = Manager(folder / "home", timing=QUICK), stub()

    def results() -> list[str]:
        found = []
        calls: list[Callable[[], object]] = [
            lambda: manager.ensure(spec),
            manager.status,
            manager.stop,
            lambda: manager.find(spec),
        ]
        for call in calls:
            try:
                found.append(repr(call()))
            except EmberdError as error:
                found.append(f"{type(error).__name__}: {error}")
        return found

    found = other_user.run_as(other_user.OTHER, results)
    assert isinstance(found, list), found
    assert found[0].startswith("StateFolderError")
    assert str(folder) in found[0]
    if mode == 0o700:
        assert all(text.startswith("StateFolderError") for text in found), found
    else:
        assert found[1:] == ["[]", "[]", "None"]


# ---------------------------------------------------------------- descriptors


def in_child(work: Callable[[], Any]) -> Any:
    """Return what ``work`` returns in a child of this process."""
    return other_user.run_as(os.geteuid(), work, os.getegid())


def with_few_descriptors(calls: Callable[[int], Iterable[Callable[[], object]]]) -> list[str]:
    """Return the outcome of each call, with 0 to 11 more descriptors than are open."""
    found = []
    highest = max(map(int, os.listdir("/proc/self/fd")))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for free in range(12):
        of_this = calls(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + free, hard))
        for call in of_this:
            try:
                call()
                found.append("ok")
            except EmberdError as error:
                found.append("typed" if ". " in str(error) else str(error))
            except Exception as error:  # noqa: BLE001 - it is the result
                found.append(repr(error))
    return found


def test_every_number_of_descriptors_gives_a_server_or_an_error(
    manager: Manager, home: Path, stub: Stub
) -> None:
    spec = stub()
    manager.ensure(spec)

    def calls(_: int) -> list[Callable[[], object]]:
        return [
            lambda: Manager(home, timing=QUICK).ensure(spec),
            lambda: Manager(home, timing=QUICK).status(),
            lambda: Manager(home, timing=QUICK).find(spec),
        ]

    found = in_child(lambda: with_few_descriptors(calls))
    assert set(found) <= {"ok", "typed"}, found
    assert found[-3:] == ["ok"] * 3


def test_every_number_of_descriptors_starts_a_server_or_is_an_error(
    manager: Manager, home: Path, stub: Stub
) -> None:
    def calls(free: int) -> list[Callable[[], object]]:
        spec = stub(f"m{free}")
        return [lambda: Manager(home, timing=QUICK).ensure(spec, start_timeout=20)]

    found = in_child(lambda: with_few_descriptors(calls))
    assert set(found) <= {"ok", "typed"}, found

"""Temporary files and shared memory are removed, however the server ends."""

from __future__ import annotations

import json
import mmap
import os
import secrets
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import psutil
import pytest

import leftovers
import waiting
from emberd.errors import StateFolderError
from emberd.manager import State, cleanup, orphan_reaper, paths, process_tree, state
from emberd.settings import ServerSpec
from emberd.system import ownership
from emberd.verified_manager import Manager
from homes import QUICK, Stub, begin

_SHARED_MEMORY: Final = Path("/dev/shm")
_LEAVER: Final = {"faults": "leaves-files"}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm is Linux's")


def traces(pid: int) -> set[Path]:
    """Return the shared memory of a stub server, and of its semaphores."""
    inodes = set(orphan_reaper.shared_memory_inodes(pid))
    return {path for path in _SHARED_MEMORY.iterdir() if path.stat().st_ino in inodes}


def scratch_of(home: Path) -> Path:
    """Return the server's folder for temporary files: other runs of the tests have theirs too."""
    (file,) = home.glob(f"*/servers/*/{state.RECORD_NAME}")
    return Path(json.loads(file.read_text())["scratch"])


def server_of(home: Path) -> psutil.Process:
    def find() -> psutil.Process | None:
        there = leftovers.find([str(home)])
        return next((p for p in there if "server.py" in " ".join(p.cmdline())), None)

    found = waiting.until(find)
    assert found is not None
    return found


def kill(process: psutil.Process) -> None:
    process.send_signal(signal.SIGKILL)


def supervisor_of(server: psutil.Process) -> psutil.Process:
    return next(p for p in server.parents() if "emberd.verified_manager" in p.cmdline())


def kill_all(manager: Manager, server: psutil.Process) -> None:
    """Kill the server, its supervisor and the orphan reaper, and start another server."""
    supervisor = supervisor_of(server)
    supervisor.suspend()  # it would start another orphan reaper
    for child in supervisor.children():
        kill(child)
    kill(supervisor)
    waiting.until(lambda: not psutil.pid_exists(server.pid))
    manager.ensure(ServerSpec(model="stub/next", engine="stubs.engine"))


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(lambda manager, server: manager.stop(), id="stopped"),
        pytest.param(lambda manager, server: kill(server), id="server-killed"),
        pytest.param(lambda manager, server: kill(supervisor_of(server)), id="supervisor-killed"),
        pytest.param(kill_all, id="all-killed"),
    ],
)
def test_files_outside_of_the_state_folder_are_removed(
    manager: Manager, stub: Stub, home: Path, end: Callable[[Manager, psutil.Process], None]
) -> None:
    manager.ensure(stub(**_LEAVER))
    server = server_of(home)
    scratch = scratch_of(home)
    waiting.until(lambda: len(list(scratch.iterdir())) == 1)
    left = waiting.until(lambda: found if len(found := traces(server.pid)) >= 2 else set())
    # The supervisor looks once a second: what it has not seen yet it could not remove.
    listed = Path(orphan_reaper.list_of_memory(str(scratch)))
    waiting.until(lambda: listed.exists() and len(listed.read_text().split()) >= 2)
    end(manager, server)
    waiting.until(lambda: not any(path.exists() for path in (*left, listed, scratch)))


def test_shared_memory_of_a_server_that_is_killed_as_soon_as_it_is_ready_is_removed(
    home: Path, stub: Stub
) -> None:
    # Its supervisor would next look in a minute.
    manager = Manager(home, timing=replace(QUICK, look_s=60.0))
    manager.ensure(stub(**_LEAVER))
    server = server_of(home)
    left = waiting.until(lambda: traces(server.pid))
    kill(server)
    waiting.until(lambda: manager.status()[0].state is State.FAILED)
    assert not any(path.exists() for path in left)


def test_shared_memory_of_a_server_that_is_stopped_while_it_starts_is_removed(
    manager: Manager, stub: Stub, home: Path
) -> None:
    begin(manager, stub(**_LEAVER, start=60))
    server = server_of(home)
    left = waiting.until(lambda: found if len(found := traces(server.pid)) >= 2 else set())
    manager.stop()
    assert not any(path.exists() for path in left)


@pytest.mark.parametrize("victim", ["server", "supervisor"])
def test_shared_memory_that_was_made_just_before_a_kill_is_removed(
    manager: Manager, stub: Stub, home: Path, victim: str
) -> None:
    manager.ensure(stub(faults="leaves-unseen"))
    server = server_of(home)
    supervisor = supervisor_of(server)
    supervisor.suspend()
    server.send_signal(signal.SIGUSR1)
    unseen = _SHARED_MEMORY / f"stub_loads_{server.pid}"
    waiting.until(unseen.exists)
    if victim == "supervisor":
        kill(supervisor)
    else:
        kill(server)
        supervisor.resume()
    waiting.until(lambda: not unseen.exists())


def test_only_an_engines_own_new_and_unused_memory_counts_as_unseen(
    shared: Callable[[str], Path],
) -> None:
    now = time.time()
    token = secrets.token_hex(4)
    unseen, opened = shared(token), shared(f"{token}_opened")
    shared(f"another_{token}")
    own = (f"test_{token}",)
    with opened.open("rb"):
        assert orphan_reaper.unseen_memory(own, now) == {unseen.stat().st_ino}
    assert orphan_reaper.unseen_memory(own, now + 60) == set()
    assert orphan_reaper.unseen_memory(own, now - 60) == set()
    assert orphan_reaper.unseen_memory((), now) == set()


@pytest.fixture(autouse=True)
def _only_new_mappings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this process may have left a mapping whose file is gone (tqdm's semaphore)."""
    found = orphan_reaper.shared_memory_inodes
    before = found(os.getpid())
    monkeypatch.setattr(orphan_reaper, "shared_memory_inodes", lambda pid: found(pid) - before)


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """The folder of temporary files of a start, of which there may be a list of shared memory."""
    folder = tmp_path / f"emberd-{secrets.token_hex(8)}"
    folder.mkdir()
    yield folder
    Path(orphan_reaper.list_of_memory(str(folder))).unlink(missing_ok=True)


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes shared memory."""
    made: list[Path] = []

    def make(name: str) -> Path:
        made.append(_SHARED_MEMORY / f"test_{name}_{os.getpid()}")
        made[-1].write_bytes(bytes(4096))
        return made[-1]

    yield make
    for path in made:
        path.unlink(missing_ok=True)


def test_only_listed_shared_memory_is_removed(scratch: Path, shared: Callable[[str], Path]) -> None:
    listed, other = shared("listed"), shared("other")
    file = Path(orphan_reaper.list_of_memory(str(scratch)))
    file.write_bytes(b"\xff\xfe \xb2 12x\n%d\n" % listed.stat().st_ino)
    cleanup.remove_files(str(scratch))
    assert [path.exists() for path in (listed, other, file, scratch)] == [False, True, False, False]


def test_list_in_another_folder_of_shared_memory_is_not_used(
    scratch: Path, shared: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers and jobs with one home may have such folders of their own, with equal inodes."""
    precious = shared("precious")
    monkeypatch.setattr(orphan_reaper, "SHARED_MEMORY", str(tmp_path))
    memory = cleanup.SharedMemory(str(scratch))
    with precious.open("r+b") as file, mmap.mmap(file.fileno(), 0):
        memory.update(lambda: [os.getpid()], at_once=True)
    monkeypatch.undo()
    cleanup.remove_files(str(scratch))
    assert precious.exists()


def test_new_memory_is_listed_at_one_of_the_next_updates(
    scratch: Path, shared: Callable[[str], Path]
) -> None:
    memory = cleanup.SharedMemory(str(scratch))
    memory.update(lambda: [os.getpid()], at_once=True)
    new = shared("new")
    with new.open("r+b") as file, mmap.mmap(file.fileno(), 0):

        def is_known() -> bool:
            memory.update(lambda: [os.getpid()])
            return bool(memory.known)

        waiting.until(is_known)
        assert memory.known == {new.stat().st_ino}
        listed = Path(orphan_reaper.list_of_memory(str(scratch))).read_text()
        assert listed.split() == [str(new.stat().st_ino)]


def test_processes_are_not_read_while_there_is_no_memory_of_unknown_owners(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {1}
    monkeypatch.setattr(orphan_reaper, "existing_memory", lambda: set(there))
    monkeypatch.setattr(cleanup, "_EVERY_S", 0.0)
    memory, reads = cleanup.SharedMemory(str(scratch)), list[str]()

    def processes() -> list[int]:
        reads.append("read")
        return []

    for _ in range(10):
        memory.update(processes)
    assert reads == []
    there.add(2)
    memory.update(processes)
    assert reads == ["read"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of another user")
def test_list_of_another_user_is_not_used(scratch: Path, shared: Callable[[str], Path]) -> None:
    precious = shared("precious")
    file = Path(orphan_reaper.list_of_memory(str(scratch)))
    file.write_text(f"{precious.stat().st_ino}\n")
    os.chown(file, 12345, 12345)
    cleanup.remove_files(str(scratch))
    assert precious.exists()


def test_shared_memory_that_existed_before_or_is_in_use_is_kept(
    scratch: Path, shared: Callable[[str], Path]
) -> None:
    older = shared("older")
    memory = cleanup.SharedMemory(str(scratch))
    used = shared("used")
    with older.open("r+b") as first, used.open("r+b") as second:
        with mmap.mmap(first.fileno(), 0), mmap.mmap(second.fileno(), 0):
            memory.update(lambda: [os.getpid()], at_once=True)
            assert memory.known == {used.stat().st_ino}
            cleanup.remove_files(str(scratch), memory.known)
            assert used.exists()
    cleanup.remove_files(str(scratch), memory.known)
    assert (older.exists(), used.exists()) == (True, False)


def test_shared_memory_from_before_a_start_survives_the_orphan_reaper(
    scratch: Path, shared: Callable[[str], Path]
) -> None:
    older = shared("older")
    mark = f"TESTED_MARK=folder:{scratch.name}"
    reaper = process_tree.OrphanReaper(mark, str(scratch))
    assert reaper.pid is not None
    assert reaper._pipe is not None
    waiting.until(lambda: "read" in Path(f"/proc/{reaper.pid}/wchan").read_text())
    program = f"import mmap; f = open({str(older)!r}, 'r+b'); m = mmap.mmap(f.fileno(), 0); input()"
    name, _, value = mark.partition("=")
    with subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, name: value}, stdin=subprocess.PIPE
    ) as process:
        waiting.until(lambda: orphan_reaper.shared_memory_inodes(process.pid))
        os.close(reaper._pipe)  # as if this process had ended
        os.waitpid(reaper.pid, 0)
        assert process.wait(30) == -signal.SIGKILL
    assert older.exists()
    assert not scratch.exists()


@pytest.mark.timeout(30)
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["directory", "fifo"])
def test_shared_memory_that_cannot_be_listed_is_remembered_and_listed_later(
    scratch: Path, shared: Callable[[str], Path], make: Callable[[Path], None]
) -> None:
    """As on a full disk. Opening a named pipe would wait for a reader."""
    file = Path(orphan_reaper.list_of_memory(str(scratch)))
    make(file)
    memory = cleanup.SharedMemory(str(scratch))
    seen = shared("full")
    with seen.open("r+b") as opened, mmap.mmap(opened.fileno(), 0):
        memory.update(lambda: [os.getpid()], at_once=True)
        assert memory.known == {seen.stat().st_ino}
        file.rmdir() if file.is_dir() else file.unlink()
        memory.update(lambda: [os.getpid()], at_once=True)
    assert file.read_text() == f"{seen.stat().st_ino}\n"


def test_a_folder_that_emberd_did_not_name_is_not_removed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    cleanup.remove_files(str(precious))
    assert precious.is_dir()


def test_folder_for_temporary_files_is_private_and_may_exist_already(tmp_path: Path) -> None:
    folder = tmp_path / "emberd-x"
    cleanup.make_scratch(str(folder))
    (folder / "file").touch()
    cleanup.make_scratch(str(folder))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (folder / "file").exists()


@pytest.mark.parametrize("target", ["private", "missing"])
def test_a_link_in_place_of_the_folder_for_temporary_files_is_refused(
    tmp_path: Path, target: str
) -> None:
    (tmp_path / "private").mkdir(mode=0o700)
    (tmp_path / "emberd-x").symlink_to(tmp_path / target)
    with pytest.raises(StateFolderError, match="emberd-x is not a folder"):
        cleanup.make_scratch(str(tmp_path / "emberd-x"))
    assert not (tmp_path / "missing").exists()


def test_a_folder_for_temporary_files_that_is_open_to_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "emberd-x").mkdir()
    (tmp_path / "emberd-x").chmod(0o777)
    with pytest.raises(StateFolderError, match="open to other users"):
        cleanup.make_scratch(str(tmp_path / "emberd-x"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_for_temporary_files_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "emberd-x").mkdir(mode=0o700)
    os.chown(tmp_path / "emberd-x", 64_202, 64_202)
    with pytest.raises(StateFolderError, match=r"belongs to user 64202.* Set TMPDIR to") as raised:
        cleanup.make_scratch(str(tmp_path / "emberd-x"))
    assert "EMBERD_HOME" not in str(raised.value)


@pytest.fixture
def long_folder(tmp_path: Path) -> Path:
    """A folder whose path is too long for any socket in it."""
    folder = tmp_path.joinpath(*(["long" * 8] * 5))
    folder.mkdir(parents=True, mode=0o700)
    return folder


def test_sockets_of_a_server_fit_whatever_the_folder_for_temporary_files_is(
    manager: Manager,
    home: Path,
    stub: Stub,
    long_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TMPDIR", str(long_folder))
    manager.ensure(stub(faults="makes-socket"))
    scratch = scratch_of(home)
    assert any(scratch.glob("*/listener-*"))
    manager.stop()
    assert not scratch.exists()


def test_home_may_have_a_long_path(long_folder: Path, stub: Stub) -> None:
    manager = Manager(long_folder / "home", timing=QUICK)
    try:
        assert manager.ensure(stub(faults="makes-socket")).started
    finally:
        manager.stop()


def test_temporary_files_are_not_put_where_others_may_replace_them(
    long_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(long_folder))
    facts = Path("/tmp").stat()
    opened = os.stat_result((0o40777, *facts[1:]))
    monkeypatch.setattr(os, "stat", lambda *_, **__: opened)
    with pytest.raises(StateFolderError, match="TMPDIR"):
        cleanup.temporary_folder()


def test_temporary_files_of_a_lost_record_are_found_wherever_they_were_put(
    home: Path, long_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = cleanup.scratch_path("0123456789abcdef")
    monkeypatch.setattr(cleanup, "_temporary_folders", lambda: [str(long_folder), home.parent])
    folder = ownership.make_private(home / "boot" / "servers" / "key")
    paths.rotate_log(folder, "0123456789abcdef")
    left = home.parent / Path(short).name
    cleanup.make_scratch(str(left))
    cleanup.clean_up(folder, QUICK)
    assert not left.exists()

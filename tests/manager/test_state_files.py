"""State files other than the record, lost or damaged: under a supervisor, and before a start."""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

import damage
import forked
import waiting
from emberd.endpoint import Endpoint
from emberd.errors import StateFolderError
from emberd.manager import State, idle, locks, paths, state
from emberd.manager.process_tree import ServerProcess
from emberd.manager.state import Record, Timing
from emberd.manager.state_repair import StateFiles
from emberd.settings import ServerSpec
from emberd.system import file_lock
from emberd.verified_manager import Manager
from homes import Stub, begin, server_of

OWN = Record(State.READY, "abc", ServerSpec(model="m"), Timing(), since_s=1.0)


def folder_of(manager: Manager, spec: ServerSpec, **more: float | None) -> Path:
    """Return the state folder of a server that runs."""
    return Path(manager.ensure(spec, **more).folder or "")  # type: ignore[arg-type]


# ---------------------------------------------------------------- the idle times


def test_idle_time_that_was_asked_for_survives_the_loss_of_its_file(
    manager: Manager, stub: Stub
) -> None:
    folder = folder_of(manager, stub(), idle_timeout=None)
    for kind in ("missing", "garbage", "directory"):
        print(kind)  # shown if it fails
        damage.OF_ANY_FILE[kind](folder / "last-used")
        waiting.until(
            lambda: (folder / "last-used").is_file() and idle.requested_s(folder) == math.inf
        )
        (status,) = manager.status()
        assert (status.state, status.idle_timeout) == (State.READY, None)


def test_idle_time_that_is_asked_for_while_the_file_is_lost_is_not_lost(
    manager: Manager, stub: Stub
) -> None:
    folder = folder_of(manager, stub(), idle_timeout=600)
    (folder / "last-used").unlink()
    idle.request(folder, 700)
    (folder / "last-used").unlink()
    idle.request(folder, 5)
    waiting.until(lambda: idle.requested_s(folder) in (600, 700))


@pytest.mark.parametrize("kind", damage.OF_ANY_FILE)
def test_idle_time_can_be_asked_for_whatever_has_the_files_name(tmp_path: Path, kind: str) -> None:
    (tmp_path / "home").mkdir(mode=0o700)
    folder = tmp_path / "home"
    idle.reset(folder, 60)
    damage.OF_ANY_FILE[kind](folder / "last-used")
    idle.request(folder, 600)
    assert idle.requested_s(folder) == 600


def test_idle_times_that_cannot_be_read_now_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle.reset(tmp_path, 600)
    asked = idle.RequestedTimeout(tmp_path)

    def fail(*args: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        assert asked.seconds() == 600
    asked.restore()
    assert idle.requested_s(tmp_path) == 600


def test_oversized_file_of_idle_times_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "last-used").write_bytes(b"x" * 5_000_000)
    idle.request(tmp_path, 600)
    assert idle.requested_s(tmp_path) == 600
    assert (tmp_path / "last-used").stat().st_size < 100


def test_oversized_record_is_damaged(tmp_path: Path) -> None:
    state.write_record(tmp_path, OWN)
    with (tmp_path / state.RECORD_NAME).open("ab") as file:
        file.write(b" " * 5_000_000)
    assert state.read_record(tmp_path) is None


def test_idle_time_that_cannot_be_written_is_a_state_folder_error(tmp_path: Path) -> None:
    with pytest.raises(StateFolderError, match="gone"):
        idle.request(tmp_path / "gone", 600)


@pytest.mark.parametrize("line", ["nan", "-5", "0", "\xff"])
def test_line_that_is_no_idle_time_is_ignored(tmp_path: Path, line: str) -> None:
    (tmp_path / "last-used").write_text(f"{line}\n60\n")
    assert idle.requested_s(tmp_path) == 60


# ---------------------------------------------------------------- the log


@pytest.mark.parametrize("kind", ["missing", "directory", "fifo"])
def test_start_goes_on_if_its_log_is_lost(manager: Manager, stub: Stub, kind: str) -> None:
    spec = stub(start=1)
    begin(manager, spec)
    status = waiting.until(
        lambda: next((s for s in manager.status() if s.detail == "loading"), None)
    )
    assert status is not None
    damage.OF_ANY_FILE[kind](Path(status.log_path))
    assert manager.ensure(spec).start_id == status.start_id


@pytest.mark.parametrize("kind", ["missing", "directory"])
def test_death_of_a_server_is_explained_although_its_log_was_lost(
    manager: Manager, stub: Stub, kind: str
) -> None:
    folder = folder_of(manager, stub())
    damage.OF_ANY_FILE[kind](folder / paths.LOG_NAME)
    server = server_of(psutil.Process(manager.status()[0].supervisor_pid))
    assert server is not None
    server.kill()
    waiting.until(lambda: manager.status()[0].state is State.FAILED)
    assert manager.status()[0].detail == "The stub was killed"


def test_log_of_a_server_is_what_it_wrote_also_after_a_truncation(tmp_path: Path) -> None:
    forked.run(lambda: _check_log(tmp_path / "server.log"))


def _check_log(log: Path) -> None:
    log.write_text("written before the server: much more than what it will write itself\n")
    server = ServerProcess(["/bin/sh", "-c", "echo begin; read line; echo end"], {}, "a:b", log, "")
    try:
        waiting.until(lambda: server.reap() is not None)
        assert server.log() == "begin\nend\n"
        assert server.log_bytes == len("begin\nend\n")
        os.truncate(log, 0)
        assert (server.log(), server.log_bytes) == ("", 0)
        log.write_text("new\n")
        assert server.log() == "new\n"
    finally:
        server.kill_all(5.0)
        server.close()


# ---------------------------------------------------------------- the others


def test_directory_in_place_of_a_report_does_not_end_the_server(
    manager: Manager, stub: Stub
) -> None:
    folder = folder_of(manager, stub())
    (folder / "suspect").mkdir()
    waiting.until(lambda: not (folder / "suspect").exists())
    assert manager.status()[0].state is State.READY


def test_supervisor_restores_the_permissions_of_its_liveness_lock(
    manager: Manager, stub: Stub
) -> None:
    folder = folder_of(manager, stub())
    locks.liveness_path(folder).chmod(0)
    waiting.until(lambda: stat.S_IMODE(locks.liveness_path(folder).stat().st_mode) == 0o600)
    assert manager.status()[0].state is State.READY


def test_garbled_lock_note_is_tolerated(tmp_path: Path) -> None:
    (tmp_path / "lock").write_bytes(b"\xff\xfe")
    assert file_lock.holder(tmp_path / "lock")


# The record says what there is to clean up, so the other files are damaged under a sound one.
_NAMES = [
    ["record.json"],
    [
        *(".record.json.0.unfinished", "last-used", "server.log", "server.log.1"),
        *("server.log.3", "suspect", "secret.yaml"),
    ],
]


def _make_directory(file: Path) -> None:
    file.mkdir()
    (file / "content").touch()


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(_make_directory, id="directory"),
        pytest.param(lambda file: file.symlink_to("/nowhere"), id="link"),
        pytest.param(os.mkfifo, id="fifo"),
    ],
)
def test_start_replaces_what_has_the_name_of_a_state_file(
    manager: Manager, stub: Stub, make: Callable[[Path], None]
) -> None:
    folder = folder_of(manager, stub())
    for names in _NAMES:
        manager.stop()
        (folder / "server.log.2").touch()
        for name in names:
            paths.remove(folder / name)
            make(folder / name)
        assert manager.ensure(stub()).started


# ---------------------------------------------------------------- reading and writing them


@pytest.mark.parametrize("kind", [*damage.OF_RECORD])
def test_damaged_record_reads_as_none_and_not_as_another_error(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o700)
    state.write_record(folder, OWN)
    damage.OF_RECORD[kind](folder / state.RECORD_NAME)
    read = state.read_record(folder)
    if kind == "other-start_id":
        assert read == replace(OWN, start_id="another")
    elif kind == "open-to-others" or (kind == "unreadable" and os.geteuid() == 0):
        assert read == OWN
    else:
        assert read is None


@pytest.mark.parametrize(
    "change",
    [
        *({"start_id": 1}, {"since_s": "soon"}, {"attempts": None}, {"state": "unknown"}),
        *({"schema": None}, {"schema": []}, {"supervisor": {"pid": "1", "start": "", "boot": ""}}),
        *({"endpoint": {"url": None, "model": "m", "dimensions": 1}}, {"options": {"port": "x"}}),
    ],
)
def test_record_with_a_field_of_another_type_is_damaged(
    tmp_path: Path, change: dict[str, object]
) -> None:
    state.write_record(tmp_path, OWN)
    damage.change(**change)(tmp_path / state.RECORD_NAME)
    assert state.read_record(tmp_path) is None


def test_record_with_whole_seconds_is_sound(tmp_path: Path) -> None:
    endpoint = Endpoint("http://127.0.0.1:1", "m", 8)
    own = replace(OWN, since_s=12, timing=Timing(tick_s=1), endpoint=endpoint)
    state.write_record(tmp_path, own)
    assert state.read_record(tmp_path) == own


def test_files_that_do_not_change_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "_SETTLED_S", 0.0)
    read, reads = paths.read_file, list[str]()

    def counting(path: Path, *, truncate: bool = False) -> bytes | None:
        reads.append(path.name)
        return read(path, truncate=truncate)

    idle.reset(tmp_path, 60)
    descriptor = locks.take_liveness(tmp_path)
    assert descriptor is not None
    files = StateFiles(tmp_path, descriptor)
    files.publish(OWN)
    monkeypatch.setattr(paths, "read_file", counting)
    for _ in range(10):
        files.restore()
        assert files.idle_timeout.seconds() == 60
    assert sorted(reads) == ["last-used", state.RECORD_NAME]
    damage.OF_ANY_FILE["garbage"](tmp_path / state.RECORD_NAME)
    idle.request(tmp_path, 600)
    files.restore()
    assert state.read_record(tmp_path) == OWN
    assert files.idle_timeout.seconds() == 600
    locks.release(descriptor)


def test_content_that_was_read_right_after_a_change_is_read_once_more(tmp_path: Path) -> None:
    """The clock of the file system may show no difference between two changes."""
    (tmp_path / "file").write_text("a")
    changes = paths.Changes(tmp_path / "file")
    assert not changes.is_unchanged()
    changes.accept()
    assert not changes.is_unchanged()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO])
def test_record_that_may_be_sound_and_cannot_be_read_now_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    state.write_record(tmp_path, OWN)

    def fail(*args: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        with pytest.raises(StateFolderError, match="record.json"):
            state.read_record(tmp_path)
    assert state.read_record(tmp_path) == OWN


def test_record_that_its_owner_may_not_read_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read all, so the refusal is simulated."""
    state.write_record(tmp_path, OWN)

    def refuse(*args: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        assert state.read_record(tmp_path) is None


def test_only_what_lies_in_a_private_folder_is_removed(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    (tmp_path / "open" / "precious").mkdir()
    with pytest.raises(StateFolderError):
        paths.remove(tmp_path / "open" / "precious")
    assert (tmp_path / "open" / "precious").exists()


def test_removing_a_link_leaves_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to("kept")
    paths.remove(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_failure_to_rewrite_is_reported_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    descriptor = locks.take_liveness(tmp_path)
    assert descriptor is not None
    files = StateFiles(tmp_path, descriptor)
    files.publish(OWN)
    (tmp_path / state.RECORD_NAME).unlink()

    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(state, "write_record", fail)
        for _ in range(3):
            files.restore()
    assert capsys.readouterr().err.count("No space left") == 1
    files.restore()
    assert state.read_record(tmp_path) == OWN
    locks.release(descriptor)


def test_record_that_could_not_be_published_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the old one was read concurrently, and was right when it was read."""
    monkeypatch.setattr(paths, "_SETTLED_S", 0.0)
    descriptor = locks.take_liveness(tmp_path)
    assert descriptor is not None
    files = StateFiles(tmp_path, descriptor)
    files.publish(OWN)
    files.restore()
    new = replace(OWN, progress="another")

    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(state, "write_record", fail)
        with pytest.raises(OSError, match="No space left"):
            files.publish(new)
    files.restore()
    assert state.read_record(tmp_path) == new
    locks.release(descriptor)


def test_unchanged_record_is_not_written_again(tmp_path: Path) -> None:
    descriptor = locks.take_liveness(tmp_path)
    assert descriptor is not None
    files = StateFiles(tmp_path, descriptor)
    files.publish(OWN)
    files.restore()
    before = (tmp_path / state.RECORD_NAME).stat()
    files.restore()
    assert (tmp_path / state.RECORD_NAME).stat().st_ino == before.st_ino
    locks.release(descriptor)

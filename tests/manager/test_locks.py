"""Locks between processes."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

import damage
import waiting
from emberd.errors import LockTimeoutError, StateFolderError
from emberd.manager import locks
from emberd.system import file_lock


def test_lock_file_is_kept_after_release(tmp_path: Path) -> None:
    for _ in range(2):
        with locks.start_lock(tmp_path, timeout_s=1):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_gpu_locks_of_the_same_name_exclude_each_other(tmp_path: Path) -> None:
    with (
        locks.gpu_locks(tmp_path, ["gpu-a", "gpu-b"], timeout_s=1),
        pytest.raises(LockTimeoutError, match=r"gpu-b\.lock"),
        locks.gpu_locks(tmp_path, ["gpu-b"], timeout_s=0.1),
    ):
        pass


def test_gpu_locks_in_opposite_orders_do_not_deadlock(tmp_path: Path) -> None:
    done: list[str] = []

    def claim(*names: str) -> None:
        for _ in range(20):
            with locks.gpu_locks(tmp_path, names, timeout_s=20):
                done.append(names[0])

    threads = [threading.Thread(target=claim, args=names) for names in (("a", "b"), ("b", "a"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(done) == 40


def test_lock_that_is_no_file_is_refused_with_the_command_that_removes_it(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with (
        pytest.raises(StateFolderError, match=f"rm -r {tmp_path / 'lock'}"),
        locks.start_lock(tmp_path, timeout_s=0.2),
    ):
        pass


def test_note_of_a_pipe_in_place_of_a_lock_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    assert file_lock.holder(tmp_path / "lock") == ""
    with pytest.raises(OSError, match="not a regular file"):
        file_lock.is_held(tmp_path / "lock")


# ---------------------------------------------------------------- the liveness lock


@pytest.mark.parametrize("kind", ["garbage", "directory", "fifo", "link", "socket", "unreadable"])
def test_liveness_lock_is_taken_whatever_has_its_name(tmp_path: Path, kind: str) -> None:
    locks.liveness_path(tmp_path).touch(mode=0o600)
    damage.OF_ANY_FILE[kind](locks.liveness_path(tmp_path))
    assert not locks.is_alive(tmp_path)
    descriptor = locks.take_liveness(tmp_path)
    assert descriptor is not None
    assert locks.is_alive(tmp_path)
    locks.release(descriptor)


def test_lock_that_was_never_taken_is_not_held(tmp_path: Path) -> None:
    assert not locks.is_alive(tmp_path)


def test_lock_is_held_until_it_is_released(tmp_path: Path) -> None:
    descriptor = locks.take_liveness(tmp_path)
    assert descriptor is not None
    assert locks.is_alive(tmp_path)
    assert locks.take_liveness(tmp_path) is None
    locks.release(descriptor)
    assert not locks.is_alive(tmp_path)


def test_concurrent_readers_never_see_each_other_as_the_holder(tmp_path: Path) -> None:
    (tmp_path / "alive").touch()
    seen: list[bool] = []

    def probe() -> None:
        seen.extend(locks.is_alive(tmp_path) for _ in range(300))

    threads = [threading.Thread(target=probe) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 2400
    assert not any(seen)


def test_lock_can_be_taken_while_many_readers_probe_it(tmp_path: Path) -> None:
    (tmp_path / "alive").touch()
    stop = threading.Event()

    def probe() -> None:
        while not stop.is_set():
            locks.is_alive(tmp_path)

    threads = [threading.Thread(target=probe) for _ in range(4)]
    for thread in threads:
        thread.start()
    descriptor = locks.take_liveness(tmp_path)
    stop.set()
    for thread in threads:
        thread.join()
    assert descriptor is not None
    locks.release(descriptor)


def test_forked_child_of_the_holder_does_not_keep_the_lock(tmp_path: Path) -> None:
    descriptor = locks.take_liveness(tmp_path)
    assert descriptor is not None
    pid = os.fork()
    if pid == 0:
        signal.pause()
    locks.release(descriptor)
    try:
        waiting.until(lambda: not locks.is_alive(tmp_path))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_replaced_folder_is_not_the_locked_one(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    descriptor = locks.take_liveness(folder)
    assert descriptor is not None
    assert locks.is_same_file(descriptor, folder)
    folder.rename(tmp_path / "elsewhere")
    assert not locks.is_same_file(descriptor, folder)
    folder.mkdir()
    (folder / "alive").touch()
    assert not locks.is_same_file(descriptor, folder)
    locks.release(descriptor)

"""Locks between processes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from emberd.errors import LockTimeoutError, StateFolderError
from emberd.manager import locks


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


def test_error_names_the_variable_if_the_file_cannot_be_locked(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with (
        pytest.raises(StateFolderError, match="EMBERD_HOME"),
        locks.start_lock(tmp_path, timeout_s=0.2),
    ):
        pass

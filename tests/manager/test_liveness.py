"""The liveness lock."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import waiting
from emberd.manager import liveness


def test_lock_that_was_never_taken_is_not_held(tmp_path: Path) -> None:
    assert not liveness.is_held(tmp_path)


def test_lock_is_held_until_it_is_released(tmp_path: Path) -> None:
    descriptor = liveness.take(tmp_path)
    assert descriptor is not None
    assert liveness.is_held(tmp_path)
    assert liveness.take(tmp_path) is None
    liveness.release(descriptor)
    assert not liveness.is_held(tmp_path)


def test_concurrent_readers_never_see_each_other_as_the_holder(tmp_path: Path) -> None:
    (tmp_path / "alive").touch()
    seen: list[bool] = []

    def probe() -> None:
        seen.extend(liveness.is_held(tmp_path) for _ in range(300))

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
            liveness.is_held(tmp_path)

    threads = [threading.Thread(target=probe) for _ in range(4)]
    for thread in threads:
        thread.start()
    descriptor = liveness.take(tmp_path)
    stop.set()
    for thread in threads:
        thread.join()
    assert descriptor is not None
    liveness.release(descriptor)


def test_forked_child_of_the_holder_does_not_keep_the_lock(tmp_path: Path) -> None:
    descriptor = liveness.take(tmp_path)
    assert descriptor is not None
    pid = os.fork()
    if pid == 0:
        signal.pause()
    liveness.release(descriptor)
    try:
        waiting.until(lambda: not liveness.is_held(tmp_path))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_replaced_folder_is_not_the_locked_one(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    folder.mkdir()
    descriptor = liveness.take(folder)
    assert descriptor is not None
    assert liveness.is_same_file(descriptor, folder)
    folder.rename(tmp_path / "elsewhere")
    assert not liveness.is_same_file(descriptor, folder)
    folder.mkdir()
    (folder / "alive").touch()
    assert not liveness.is_same_file(descriptor, folder)
    liveness.release(descriptor)

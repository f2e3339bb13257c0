"""The proof of life."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import waiting
from emberd.manager import liveness


def test_nobody_holds_what_was_never_taken(tmp_path: Path) -> None:
    assert not liveness.is_held(tmp_path)


def test_a_taken_proof_is_seen_until_it_is_released(tmp_path: Path) -> None:
    descriptor = liveness.take(tmp_path)
    assert descriptor is not None
    assert liveness.is_held(tmp_path)
    assert liveness.take(tmp_path) is None
    liveness.release(descriptor)
    assert not liveness.is_held(tmp_path)


def test_many_readers_at_once_never_take_each_other_for_a_supervisor(tmp_path: Path) -> None:
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


def test_a_taker_gets_through_the_probes_of_many_readers(tmp_path: Path) -> None:
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


def test_a_fork_of_the_holder_does_not_go_on_living_for_it(tmp_path: Path) -> None:
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


def test_a_replaced_folder_is_not_the_one_that_was_locked(tmp_path: Path) -> None:
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

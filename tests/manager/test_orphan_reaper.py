"""Descendants of a server end with its supervisor, also without a parent-death signal."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import leftovers
import waiting
from emberd.manager import orphan_reaper, process_tree, state
from emberd.verified_manager import Manager
from homes import Stub

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the shim stays")


def running(home: Path, word: str) -> list[psutil.Process]:
    found = []
    for process in leftovers.find([str(home)]):
        with suppress(psutil.NoSuchProcess):
            found += [process] if word in " ".join(process.cmdline()) else []
    return found


def children(home: Path) -> list[psutil.Process]:
    """Two that ask for no signal of their own: one in the group, one in another session."""
    return running(home, "time.sleep(600)")


@pytest.fixture
def server(manager: Manager, stub: Stub, home: Path) -> None:
    manager.ensure(stub(faults="leaves-children"))
    assert len(children(home)) == 2


def test_descendants_of_a_server_end_with_a_killed_supervisor(server: None, home: Path) -> None:
    running(home, "emberd.verified_manager")[0].send_signal(signal.SIGKILL)
    waiting.until(lambda: not leftovers.find([str(home)]))


@pytest.mark.parametrize("is_replaced", [False, True], ids=["first-reaper", "second-reaper"])
def test_nothing_is_left_although_the_state_folder_was_removed_before_the_kill(
    manager: Manager, stub: Stub, home: Path, is_replaced: bool
) -> None:
    manager.ensure(stub(faults="leaves-files"))
    (server,) = running(home, "server.py")
    (supervisor,) = running(home, "emberd.verified_manager")
    inodes = orphan_reaper.shared_memory_inodes(server.pid)
    (record,) = home.glob(f"*/servers/*/{state.RECORD_NAME}")
    scratch = Path(json.loads(record.read_text())["scratch"])
    assert inodes
    assert any(scratch.iterdir())
    if is_replaced:
        (first,) = running(home, "orphan_reaper.py")
        first.kill()
        waiting.until(lambda: [p for p in running(home, "orphan_reaper.py") if p.pid != first.pid])
    supervisor.suspend()  # it would notice that its folder is gone
    shutil.rmtree(home)
    supervisor.kill()
    waiting.until(lambda: not leftovers.find([str(home)]))
    assert not scratch.exists()
    assert inodes.isdisjoint(entry.inode() for entry in os.scandir("/dev/shm"))


def test_killed_orphan_reaper_is_replaced(server: None, home: Path) -> None:
    (first,) = running(home, "orphan_reaper.py")
    first.kill()
    waiting.until(lambda: [p for p in running(home, "orphan_reaper.py") if p.pid != first.pid])
    running(home, "emberd.verified_manager")[0].send_signal(signal.SIGKILL)
    waiting.until(lambda: not leftovers.find([str(home)]))


def test_collected_reaper_object_ends_no_process(tmp_path: Path) -> None:
    mark = "TESTED_MARK"
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(command, env={**os.environ, mark: "value"}) as sleeper:
        try:
            reaper = process_tree.OrphanReaper(f"{mark}=value", str(tmp_path / "scratch"))
            pid, pipe = reaper.pid, reaper._pipe
            assert pid is not None
            assert pipe is not None
            del reaper
            gc.collect()
            with pytest.raises(subprocess.TimeoutExpired):
                sleeper.wait(1)
            os.close(pipe)  # as if this process had ended
            sleeper.wait(30)
            os.waitpid(pid, 0)
        finally:
            sleeper.kill()


def test_stop_ends_the_orphan_reaper(server: None, manager: Manager, home: Path) -> None:
    assert running(home, "orphan_reaper.py")
    manager.stop()
    waiting.until(lambda: not leftovers.find([str(home)]))


def test_orphan_reaper_ends_no_process_with_another_mark() -> None:
    assert orphan_reaper.kill(b"EMBERD_MARK=nobody's", set()) == 0


def test_a_supervisor_of_an_older_version_can_start_it(home: Path) -> None:
    """The supervisor of a gateway keeps running while the files of emberd are replaced."""
    mark = f"MARK={home / 'machine' / 'gateway' / 'background'}:0123abcd"
    command = [sys.executable, "-I", "-S", orphan_reaper.__file__, mark, ""]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 0

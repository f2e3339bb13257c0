"""Trials of what the kernel does: the manager is built on each of these."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import waiting

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own means of Linux")
SLEEP = "import time; time.sleep(60)"


def is_locked(path: Path) -> bool:
    """Probe with a shared lock, as readers do."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_a_lock_handed_over_by_descriptor_never_falls_open_in_between(tmp_path: Path) -> None:
    path = tmp_path / "alive"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    child = subprocess.Popen([sys.executable, "-c", SLEEP], pass_fds=[descriptor])
    os.close(descriptor)
    assert is_locked(path)
    child.kill()
    child.wait()
    assert not is_locked(path)


def test_two_shared_probes_at_once_do_not_see_each_other(tmp_path: Path) -> None:
    path = tmp_path / "alive"
    path.touch()
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert not is_locked(path)


def test_an_exclusive_probe_would_be_taken_for_a_living_supervisor(tmp_path: Path) -> None:
    path = tmp_path / "alive"
    path.touch()
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert is_locked(path)


@linux_only
def test_the_death_signal_outlives_exec_and_follows_a_killed_parent() -> None:
    child = "import ctypes, os; ctypes.CDLL(None).prctl(1, 9); os.execvp('sleep', ['sleep', '60'])"
    code = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {child!r}]); "
    parent = subprocess.Popen(
        [sys.executable, "-c", code + "print(p.pid, flush=True); p.wait()"], stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    sleeper = psutil.Process(int(parent.stdout.readline()))
    waiting.until(lambda: sleeper.name() == "sleep")
    parent.kill()
    parent.wait()
    parent.stdout.close()
    waiting.until(lambda: not sleeper.is_running() or sleeper.status() == psutil.STATUS_ZOMBIE)


@linux_only
def test_a_subreaper_gets_orphans_that_left_its_session() -> None:
    pid = os.fork()
    if pid == 0:  # a separate process: being a subreaper cannot be undone
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
        orphan = "import subprocess, sys; subprocess.Popen(['sleep', '60'], start_new_session=True)"
        subprocess.run([sys.executable, "-W", "ignore", "-c", orphan], check=True)
        children = psutil.Process().children()
        for child in children:
            child.kill()
        os._exit(0 if [c.name() for c in children] == ["sleep"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_bound_socket_keeps_strangers_off_its_port_and_lets_a_server_listen() -> None:
    with socket.socket() as reserved, socket.socket() as stranger, socket.socket() as server:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match="in use"):
            stranger.bind(reserved.getsockname())
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(reserved.getsockname())
        server.listen()
        with socket.create_connection(reserved.getsockname(), timeout=5):
            pass


def test_a_fork_shares_the_lock_of_a_descriptor_that_it_does_not_close(tmp_path: Path) -> None:
    path = tmp_path / "alive"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    pid = os.fork()
    if pid == 0:
        signal.pause()
    os.close(descriptor)
    still_locked = is_locked(path)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert still_locked
    assert not is_locked(path)

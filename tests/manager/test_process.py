"""Who a process is."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import waiting
from emberd.system import processes
from other_user import OTHER, needs_root


def test_a_running_process_is_itself() -> None:
    assert processes.current().is_running()


def test_the_same_pid_with_another_start_time_is_another_process() -> None:
    assert not replace(processes.current(), start="1").is_running()


def test_a_pid_of_another_boot_is_another_process() -> None:
    assert not replace(processes.current(), boot="yesterday").is_running()


def test_a_zombie_has_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = processes.identify(child.pid)
    assert identity is not None
    child.kill()
    waiting.until(lambda: processes.identify(child.pid) is None)
    assert child.returncode is None, "it was not reaped: it is still a zombie"
    assert not identity.is_running()
    child.communicate()


def test_a_signal_reaches_the_process_it_was_meant_for_and_no_other() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        identity = processes.identify(child.pid)
        assert identity is not None
        assert not processes.send(replace(identity, start="1"), signal.SIGKILL)
        assert child.poll() is None
        assert processes.send(identity, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert not processes.send(identity, signal.SIGKILL)


def test_only_processes_with_the_mark_of_the_very_folder_are_found() -> None:
    environment = {**os.environ, processes.MARK: "/a/folder-2:start_id"}
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=environment
    ) as child:
        found = waiting.until(lambda: list(processes.marked("/a/folder-2")))
        assert [identity.pid for identity in found] == [child.pid]
        assert list(processes.marked("/a/folder")) == []
        assert list(processes.marked("/a/folder-2", start_id="another")) == []
        assert list(processes.marked("/a/folder-2", start_id="start_id")) == found
        child.kill()


@needs_root
def test_processes_that_have_another_folder_at_the_same_path_are_not_found(tmp_path: Path) -> None:
    """As in a job with a private /tmp: what runs there is not ours, whatever its mark says."""
    (tmp_path / "folder").mkdir()
    environment = {**os.environ, processes.MARK: f"{tmp_path}/folder:start_id"}
    program = f"mount -t tmpfs none {tmp_path} && mkdir {tmp_path}/folder && exec sleep 60"
    command = ["unshare", "--mount", "sh", "-c", program]
    with subprocess.Popen(command, env=environment) as other:
        waiting.until(lambda: processes.command_line(other.pid)[:1] == ["sleep"])
        with subprocess.Popen(["sleep", "60"], env=environment) as child:
            found = waiting.until(lambda: list(processes.marked(f"{tmp_path}/folder")))
            assert [identity.pid for identity in found] == [child.pid]
            child.kill()
        other.kill()


def test_name_of_a_process_may_be_any_bytes() -> None:
    """The kernel cuts names at 15 bytes, in the middle of a letter where it has two."""
    program = (
        "import ctypes; ctypes.CDLL(None).prctl(15, 'программа) x'.encode()); print(flush=True);"
        "input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in processes.descendants()
        identity = processes.identify(child.pid)
        assert identity is not None
        assert identity.is_running()
        child.kill()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM])
def test_signal_is_sent_where_the_kernel_refuses_descriptors_of_processes(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pidfd_open", refuse)
    with subprocess.Popen(["sleep", "60"]) as child:
        identity = processes.identify(child.pid)
        assert identity is not None
        assert not processes.send(replace(identity, start="1"), signal.SIGKILL)
        assert processes.send(identity, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert not processes.send(identity, signal.SIGKILL)


@needs_root
def test_processes_of_another_user_are_not_found_by_their_mark() -> None:
    environment = {**os.environ, processes.MARK: "/a/folder:start_id"}
    with subprocess.Popen(["sleep", "60"], env=environment, user=OTHER) as child:
        waiting.until(lambda: processes.variable(child.pid, processes.MARK))
        assert not processes.is_own(child.pid)
        assert list(processes.marked("/a/folder")) == []
        child.kill()


def test_command_line_and_variables_are_those_of_the_start_of_a_process() -> None:
    command = [sys.executable, "-c", "input()", "", "two words", "\udcff"]
    environment = {"FIRST": "a=b", "OTHER_FIRST": "c", "EMPTY": "", "BYTES": "\udcff"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as child:
        assert child.pid in processes.pids()
        assert processes.command_line(child.pid) == command
        for name, value in environment.items():
            assert processes.variable(child.pid, name) == value
        assert processes.variable(child.pid, "IRST") is None
        assert processes.is_own(child.pid)
        child.kill()
        waiting.until(lambda: processes.identify(child.pid) is None)
        assert processes.command_line(child.pid) == []  # of a zombie
    with pytest.raises(processes.UNREADABLE):
        processes.variable(child.pid, "FIRST")


_FAMILY = """
import subprocess, sys
with subprocess.Popen([sys.executable, "-c", "input()"]) as child:
    print(child.pid, flush=True)
"""


def test_descendants_are_found_although_other_processes_are_unreadable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with ``hidepid``: psutil's own walk fails there."""
    read = processes._read

    def read_own(pid: int, name: str) -> bytes:
        if pid == 1:
            raise PermissionError(13, "Operation not permitted")
        return read(pid, name)

    monkeypatch.setattr(processes, "_read", read_own)
    with subprocess.Popen(
        [sys.executable, "-c", _FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        found = processes.descendants()
        assert {child.pid, grandchild} <= set(found)
        assert not {1, os.getpid(), os.getppid()} & set(found)
        child.communicate(b"\n")
    assert not {child.pid, grandchild} & set(processes.descendants())

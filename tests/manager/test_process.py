"""Who a process is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import waiting
from emberd.system import processes


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
    assert child.returncode is None, "nobody has reaped it: it is still a zombie"
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


_RENAMED = """
with open("/proc/self/comm", "wb") as name:
    name.write(b"caf\\xe9 (x")
input()
"""


def test_a_process_whose_name_is_not_utf_8_is_identified() -> None:
    """The kernel cuts a name after fifteen bytes, also in the middle of a character."""
    with subprocess.Popen([sys.executable, "-c", _RENAMED], stdin=subprocess.PIPE) as child:
        name = Path(f"/proc/{child.pid}/comm")
        waiting.until(lambda: name.read_bytes() == b"caf\xe9 (x\n")
        identity = processes.identify(child.pid)
        assert identity is not None
        assert identity.is_running()
        assert child.pid in processes.descendants()
        child.kill()


_FAMILY = """
import subprocess, sys
with subprocess.Popen([sys.executable, "-c", "input()"]) as child:
    print(child.pid, flush=True)
"""


def test_descendants_are_found_although_other_processes_are_unreadable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with ``hidepid``: psutil's own walk fails there."""
    read = Path.read_text

    def read_text(path: Path, **more: Any) -> str:
        if str(path) == "/proc/1/stat":
            raise PermissionError(13, "Operation not permitted")
        return read(path, **more)

    monkeypatch.setattr(Path, "read_text", read_text)
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

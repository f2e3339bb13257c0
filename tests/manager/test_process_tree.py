"""The server's process and its descendants."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil

import waiting
from emberd.manager import process_tree


def test_orphan_that_left_the_session_is_reaped_by_the_supervisor() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0 if _supervisor_leaves_nothing() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _supervisor_leaves_nothing() -> bool:
    process_tree.become_subreaper()
    orphan = "import subprocess; subprocess.Popen(['sleep', '60'], start_new_session=True)"
    server = process_tree.ServerProcess(
        [sys.executable, "-W", "ignore", "-c", orphan], dict(os.environ), "m", Path(os.devnull)
    )
    waiting.until(lambda: server.reap() is not None)
    there = psutil.Process().children(recursive=True)
    return bool(there) and server.kill_all(5.0) and not psutil.Process().children(recursive=True)

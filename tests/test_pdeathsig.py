"""The shim: a server must not outlive its supervisor, by either of its two means."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from emberd.system import pdeathsig as program

SHIM = [sys.executable, "-I", "-S", program.__file__]
SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]


def keep(arguments: str) -> tuple[subprocess.Popen[str], psutil.Process]:
    """Start a process that starts the shim, and return it and the sleeping server."""
    code = (
        "import os, subprocess, sys\n"
        f"arguments, pipe = {arguments}\n"
        f"p = subprocess.Popen([*{SHIM!r}, *map(str, arguments), *{SLEEP!r}],\n"
        "                     stdout=subprocess.PIPE, pass_fds=[pipe] if pipe >= 0 else [],\n"
        "                     start_new_session=True)\n"
        "p.stdout.readline(); print(p.pid, flush=True); p.wait()\n"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert supervisor.stdout is not None
    return supervisor, psutil.Process(int(supervisor.stdout.readline()))


KERNEL = "[os.getpid(), -1], -1"
PIPE = "(lambda r: ([os.getpid(), r], r))(os.pipe()[0])"

MEANS = [
    pytest.param(
        KERNEL, marks=pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
    ),
    PIPE,
]


@pytest.mark.parametrize("means", MEANS)
def test_a_server_dies_with_its_supervisor_however_that_died(means: str) -> None:
    supervisor, shim = keep(means)
    group = [shim, *shim.children(recursive=True)]
    supervisor.kill()
    supervisor.communicate()
    _, alive = psutil.wait_procs(group, timeout=5)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []


def test_without_a_pipe_the_shim_becomes_the_server() -> None:
    supervisor, shim = keep(KERNEL)
    assert shim.cmdline() == SLEEP
    supervisor.kill()
    supervisor.communicate()


def test_a_server_whose_supervisor_died_before_the_shim_ran_is_not_started() -> None:
    ended = subprocess.run([*SHIM, "1", "-1", *SLEEP], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""


def test_a_program_that_is_not_there_is_said_in_one_line() -> None:
    command = [*SHIM, str(os.getpid()), "-1", "/no/such/program"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 127
    assert ended.stderr == "emberd: cannot run /no/such/program: No such file or directory\n"


@pytest.mark.parametrize(("code", "seen"), [("raise SystemExit(5)", 5), ("os.kill(0, 9)", -9)])
def test_through_a_pipe_the_servers_exit_code_is_the_shims(code: str, seen: int) -> None:
    read, write = os.pipe()
    command = [*SHIM, "0", str(read), sys.executable, "-c", f"import os; {code}"]
    ended = subprocess.run(command, pass_fds=[read], start_new_session=True, check=False)
    os.close(read)
    os.close(write)
    assert ended.returncode == seen


def test_through_a_pipe_sigterm_reaches_the_server() -> None:
    read, write = os.pipe()
    graceful = (
        "import signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "print('up', flush=True)\n"
        "signal.pause()"
    )
    shim = subprocess.Popen(
        [*SHIM, "0", str(read), sys.executable, "-c", graceful],
        pass_fds=[read],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    os.close(read)
    assert shim.stdout is not None
    shim.stdout.readline()
    shim.send_signal(signal.SIGTERM)
    shim.communicate(timeout=10)
    os.close(write)
    assert shim.returncode == 7

"""The supervisor starts whatever its caller's folder, ``sys.path`` and descriptors are like."""

from __future__ import annotations

import os
import posix
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest

import waiting
from emberd.errors import StartError
from emberd.installs import RECIPES, interpreters
from emberd.manager import spawn
from emberd.system import background, process_env
from emberd.verified_manager import Manager
from homes import QUICK, Starts, Stub
from plain_client import embed

# The standard library, what the supervisor itself needs, and what it imports late.
HIDDEN = (
    *("types", "logging", "random", "json", "enum", "signal", "select", "secrets", "ipaddress"),
    *("msgspec", "pybase64", "psutil", "numpy"),
)


def call(
    home: Path, stub: Stub, *, before: str = "", after: str = "", **options: Any
) -> subprocess.CompletedProcess[str]:
    """Ask for a server in another process.

    Args:
        home: Its EMBERD_HOME.
        stub: Makes the spec.
        before: Code that runs before emberd is imported.
        after: Code that runs before the call.
        options: Passed on to ``subprocess.run``.
    """
    spec = asdict(stub())
    code = (
        f"{before}\n"
        "import sys\n"
        "from emberd.manager import Timing\n"
        "from emberd.settings import ServerSpec\n"
        "from emberd.verified_manager import Manager\n"
        f"{after}\n"
        f"manager = Manager({str(home)!r}, timing=Timing(**{asdict(QUICK)}))\n"
        f"server = manager.ensure(ServerSpec(**{spec}))\n"
        "open(sys.argv[1], 'w').write(server.endpoint.url)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    streams = {} if "preexec_fn" in options else {"capture_output": True}
    return subprocess.run(
        [sys.executable, "-P", "-c", code, str(home.parent / "url")],
        env=environment,
        text=True,
        check=False,
        timeout=waiting.DEADLINE_S * 2,
        **{**streams, **options},
    )


@pytest.fixture
def shadows(tmp_path: Path) -> Path:
    """A folder with files that hide modules which a supervisor imports."""
    folder = tmp_path / "application"
    folder.mkdir()
    for name in HIDDEN:
        (folder / f"{name}.py").write_text(f"raise RuntimeError('{name} is hidden')\n")
    return folder


@pytest.mark.parametrize("place", ["script", "working folder", "PYTHONPATH"])
def test_files_of_the_application_hide_no_module(
    manager: Manager, home: Path, stub: Stub, shadows: Path, place: str
) -> None:
    lines = {
        "script": f"sys.path.insert(0, {str(shadows)!r})",
        "working folder": "sys.path.append('')",
        # What the application puts there hides no module of the standard library.
        "PYTHONPATH": f"sys.path.insert(1, {str(shadows)!r})",
    }
    if place == "PYTHONPATH":
        for name in HIDDEN[-4:]:
            (shadows / f"{name}.py").unlink()
    # The caller has them all by then.
    before = f"import {', '.join(HIDDEN)}"
    done = call(home, stub, before=before, after=lines[place], cwd=shadows)
    assert done.returncode == 0, done.stderr
    assert len(manager.status()) == 1


def test_the_processes_of_a_started_server_are_compared_with_its_plan(
    manager: Manager, stub: Stub, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    manager.ensure(stub(pids=pids))
    waiting.until(pids.exists)
    [status] = manager.status()
    compared = set(map(int, pids.read_text().split()))
    assert compared
    children = psutil.Process(status.supervisor_pid).children(recursive=True)
    assert compared <= {child.pid for child in children}


def test_engine_beside_the_script_is_found(manager: Manager, home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "script"
    (folder / "mine").mkdir(parents=True)
    source = Path(__file__).parents[1] / "stubs" / "engine.py"
    text = source.read_text().replace('name = "stubs.engine"', 'name = "mine.engine"')
    server_file = repr(str(source.parents[1] / "stub_server.py"))
    text = text.replace('str(Path(__file__).parents[1] / "stub_server.py")', server_file)
    (folder / "mine" / "engine.py").write_text(text)
    script = folder / "script.py"
    script.write_text(
        "from emberd.settings import ServerSpec\n"
        "from emberd.verified_manager import Manager\n"
        f"manager = Manager({str(home)!r})\n"
        "manager.ensure(ServerSpec(model='stub/ok', engine='mine.engine'))\n"
    )
    path = os.pathsep.join(entry for entry in sys.path if entry and "tests" not in entry)
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, str(script)], env=environment, check=True, cwd="/")
    assert manager.status()[0].engine == "mine.engine"


def test_working_folder_that_was_deleted_does_not_matter(
    manager: Manager, home: Path, stub: Stub, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    line = f"import os; os.rmdir({str(gone)!r}); sys.path.insert(0, '')"
    done = call(home, stub, after=line, cwd=gone)
    assert done.returncode == 0, done.stderr


# Imported before the supervisor detaches itself, and afterwards.
IMPORTED = {"at once": "emberd.manager.supervisor", "later": "ctypes"}
REAPED = {
    "by us": "",
    "by the application": "signal.signal(signal.SIGCHLD, lambda *_: os.waitpid(-1, 0))",
    "by the kernel": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
}


@pytest.mark.parametrize("reaped", REAPED)
@pytest.mark.parametrize("when", IMPORTED)
def test_supervisor_that_cannot_import_is_reported_with_its_last_line(
    home: Path, stub: Stub, starts: Starts, tmp_path: Path, when: str, reaped: str
) -> None:
    (tmp_path / "sabotaged.py").write_text(
        "import runpy, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {IMPORTED[when]!r}: raise ValueError('broken on purpose')\n"
        "sys.meta_path.insert(0, Finder())\n"
        "runpy.run_module('emberd.verified_manager', run_name='__main__')\n"
    )
    lines = (
        "import os, signal",
        "from emberd.manager import spawn",
        "spawn.SUPERVISOR_MODULE = 'sabotaged'",
        f"sys.path.append({str(tmp_path)!r})",
        REAPED[reaped],
    )
    last = call(home, stub, after="\n".join(lines)).stderr.splitlines()[-1]
    assert "StartError" in last
    assert "ValueError: broken on purpose" in last
    assert "killed" not in last
    assert starts() == 0


def test_all_who_wait_get_the_failure_of_the_supervisor(
    manager: Manager, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spawn, "SUPERVISOR_MODULE", "emberd.no_such_module")
    spec = stub()
    together = threading.Barrier(4)

    def ask() -> None:
        together.wait()
        manager.ensure(spec)

    waiters = [background.run(ask, "waiter") for _ in range(4)]
    errors = [waiter.exception(waiting.DEADLINE_S) for waiter in waiters]
    assert {type(error) for error in errors} == {StartError}
    assert len(set(map(str, errors))) == 1
    assert "no_such_module" in str(errors[0])


def test_interpreter_that_cannot_be_run_is_an_error(
    manager: Manager, stub: Stub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(StartError, match="could not be run"):
        manager.ensure(stub())


@pytest.fixture(params=["uwsgi", None])
def host(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[None]:
    """Python in a program that embeds it, whose path ``sys.executable`` is; it must not be run."""
    mark, program = tmp_path / "was-run", request.param and tmp_path / request.param
    if program:
        program.write_text(f"#!/bin/sh\ntouch {mark}\n")
        program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program or ""))
    yield
    assert not mark.exists()


@pytest.mark.usefixtures("host")
def test_embedded_python_finds_its_interpreter(manager: Manager, stub: Stub) -> None:
    assert embed(manager.ensure(stub()), "hello").status_code == 200
    assert interpreters.find_python(RECIPES["sglang"]) == process_env.interpreter()


@pytest.mark.usefixtures("host")
def test_embedded_python_without_an_interpreter_is_an_error(
    manager: Manager, stub: Stub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for prefix in ("prefix", "base_prefix"):
        monkeypatch.setattr(sys, prefix, str(tmp_path))
    with pytest.raises(StartError, match="emberd up") as raised:
        manager.ensure(stub())
    assert f"sys.executable={sys.executable!r}" in str(raised.value)


@pytest.mark.parametrize("closed", [(0,), (0, 1), (1, 2), (0, 1, 2), (2,)])
def test_closed_standard_streams_are_not_taken_for_the_lock(
    manager: Manager, home: Path, stub: Stub, closed: tuple[int, ...]
) -> None:
    done = call(home, stub, preexec_fn=lambda: list(map(os.close, closed)))
    assert done.returncode == 0
    server = manager.ensure(stub())
    assert (home.parent / "url").read_text() == server.endpoint.url
    assert embed(server, "hello").status_code == 200


def test_supervisor_keeps_no_descriptor_and_no_folder_of_the_caller(
    manager: Manager, stub: Stub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    monkeypatch.chdir(tmp_path)
    try:
        manager.ensure(stub())
        pid = manager.status()[0].supervisor_pid
        os.close(writing)
        assert os.read(reading, 1) == b""
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
    finally:
        os.close(reading)


def test_interrupted_call_leaves_no_zombie_and_the_start_continues(
    manager: Manager, stub: Stub, starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep, run = time.sleep, posix.posix_spawn
    started: list[int] = []

    def interrupt_once(seconds: float) -> None:
        sleep(seconds)
        if len(started) == 1:
            started.append(0)
            raise KeyboardInterrupt

    def spawned(*args: Any, **more: Any) -> int:
        started.append(run(*args, **more))
        return started[-1]

    monkeypatch.setattr(time, "sleep", interrupt_once)
    monkeypatch.setattr(posix, "posix_spawn", spawned)
    with pytest.raises(KeyboardInterrupt):
        manager.ensure(stub())
    with pytest.raises(ChildProcessError):
        os.waitpid(started[0], os.WNOHANG)
    assert embed(manager.ensure(stub()), "hello").status_code == 200
    assert starts() == 1

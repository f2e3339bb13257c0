"""kill -9 of each process in each state: the next ensure works, and no process is left.

This is checked at the end of every test, by the ``manager`` fixture.
"""

from __future__ import annotations

import contextlib
import os
import posix
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

import clients
import leftovers
import waiting
from emberd.errors import StartError, StartTimeoutError
from emberd.manager import State, spawn, state
from emberd.settings import ServerSpec
from emberd.system import background
from emberd.verified_manager import Manager
from homes import QUICK, Starts, Stub, begin, server_of
from plain_client import embed, in_flight, refuses


def supervisor_of(manager: Manager) -> psutil.Process:
    """Return the only running supervisor, once its record names it."""

    def find() -> psutil.Process | None:
        # Until a new supervisor writes its record, the last one's names a process that is ending.
        for server in manager.status():
            if server.supervisor_pid and server.state not in (State.ABSENT, State.FAILED):
                with contextlib.suppress(psutil.NoSuchProcess):
                    return psutil.Process(server.supervisor_pid)
        return None

    found = waiting.until(find)
    assert found is not None
    return found


def engine_of(manager: Manager) -> psutil.Process:
    """Return the only server's process, once it runs its own program."""

    def find() -> psutil.Process | None:
        with contextlib.suppress(psutil.NoSuchProcess):
            server = server_of(supervisor_of(manager))
            if server is not None and "pdeathsig.py" not in " ".join(server.cmdline()):
                return server
        return None

    found = waiting.until(find)
    assert found is not None
    return found


VICTIMS = {"supervisor": supervisor_of, "engine": engine_of}


def wait_until_gone(process: psutil.Process) -> None:
    """Wait until a process has ended, reaped by its parent or not."""

    def is_gone() -> bool:
        try:
            return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:  # it was reaped between the two calls
            return True

    waiting.until(is_gone)


def kill(process: psutil.Process) -> None:
    """Kill a process and wait until it has ended."""
    process.kill()
    wait_until_gone(process)


def assert_works(manager: Manager, spec: ServerSpec) -> None:
    """The next ensure gives a server that answers."""
    assert embed(manager.ensure(spec), "hello").status_code == 200


@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_while_the_server_starts(manager: Manager, stub: Stub, victim: str) -> None:
    spec = stub(start=1)
    begin(manager, spec)
    kill(VICTIMS[victim](manager))
    waiting.until(lambda: manager.status()[0].state is not State.STARTING)
    assert_works(manager, spec)


# What a start waits for in each phase, and what its log says then.
PHASES = {
    "loading": ("start_when", "loading"),
    "warming up": ("ready_when", "ready is held"),
    "verification": ("answer_when", "answer is held"),
}


@pytest.mark.parametrize("victims", [["supervisor"], ["engine"], ["supervisor", "engine"]])
@pytest.mark.parametrize("phase", PHASES)
def test_killed_start_is_repeated_for_all_who_wait(
    manager: Manager, home: Path, stub: Stub, starts: Starts, phase: str, victims: list[str]
) -> None:
    step, shown = PHASES[phase]
    go = home.parent / "go"
    spec = stub(**{step: go})
    waiters = [background.run(lambda: manager.ensure(spec), "waiter") for _ in range(3)]
    waiting.until(lambda: any(shown in _log(each.log_path) for each in manager.status()))
    processes = [VICTIMS[victim](manager) for victim in victims]
    go.touch()
    for process in processes:
        process.kill()
    servers = [waiter.result(60) for waiter in waiters]
    assert len({server.start_id for server in servers}) == 1
    assert embed(servers[0], "hello").status_code == 200
    assert starts() == 2


def test_killed_start_is_repeated_for_processes_that_wait(
    manager: Manager, home: Path, stub: Stub, starts: Starts
) -> None:
    go = home.parent / "go"
    spec = stub(start_when=go)
    waiters = [clients.begin(home, spec, QUICK) for _ in range(3)]
    for waiter in waiters:
        clients.wait_until_loaded(waiter)
        clients.release(waiter)
    kill(engine_of(manager))
    go.touch()
    answers = [clients.answer(waiter) for waiter in waiters]
    assert len({answer["start_id"] for answer in answers}) == 1
    assert starts() == 2


@pytest.mark.parametrize("moment", ["while it imports", "before its record"])
def test_supervisor_killed_before_its_first_record_is_started_again(
    manager: Manager,
    stub: Stub,
    starts: Starts,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    victims: list[int] = []
    run, await_takeover = posix.posix_spawn, spawn._await_takeover

    def run_and_kill(*args: Any, **more: Any) -> int:
        pid: int = run(*args, **more)
        if not victims and moment == "while it imports":
            os.kill(pid, signal.SIGKILL)
        victims.append(pid)
        return pid

    def kill_and_await(*args: Any, **more: Any) -> Any:
        if len(victims) == 1:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(victims[0], signal.SIGKILL)
        return await_takeover(*args, **more)

    monkeypatch.setattr(posix, "posix_spawn", run_and_kill)
    monkeypatch.setattr(spawn, "_await_takeover", kill_and_await)
    assert_works(manager, stub())
    assert len(victims) == 2
    assert starts() <= 2


def test_start_that_is_killed_again_and_again_is_an_error_for_all_who_wait(
    manager: Manager, home: Path, stub: Stub, starts: Starts
) -> None:
    # Each is killed when it is older than the cool-down, as in a load that takes minutes.
    quick = Manager(home, timing=replace(QUICK, cool_down_s=0.5))
    spec = stub(start=60)
    waiters = [background.run(lambda: quick.ensure(spec), "waiter") for _ in range(3)]
    killed: list[int] = []
    while not all(waiter.done() for waiter in waiters):
        for each in quick.status():
            if each.supervisor_pid and each.state is State.STARTING and each.seconds > 0.6:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each.supervisor_pid, signal.SIGKILL)
                    killed.append(each.supervisor_pid)
        time.sleep(QUICK.poll_s)
    errors = [waiter.exception() for waiter in waiters]
    assert {type(error) for error in errors} == {StartError}
    assert {"3 starts in a row were killed" in str(error) for error in errors} == {True}
    # A waiter that the machine kept from running may have missed one, and starts to count again.
    assert len(set(killed)) >= 3


def test_repeated_starts_end_at_the_callers_deadline(
    manager: Manager, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "MAX_KILLED_STARTS", 1000)
    spec = stub(start=60)
    waiter = background.run(lambda: manager.ensure(spec, start_timeout=3), "waiter")
    began = time.monotonic()
    while not waiter.done():
        for each in manager.status():
            if each.supervisor_pid and each.state is State.STARTING:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each.supervisor_pid, signal.SIGKILL)
        time.sleep(QUICK.poll_s)
        assert time.monotonic() - began < 30
    assert isinstance(waiter.exception(), StartTimeoutError)


@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_while_the_server_is_ready(manager: Manager, stub: Stub, victim: str) -> None:
    lost = manager.ensure(stub())
    kill(VICTIMS[victim](manager))
    waiting.until(lambda: refuses(lost))
    assert_works(manager, stub())


@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_while_a_client_reconnects(manager: Manager, stub: Stub, victim: str) -> None:
    lost = manager.ensure(stub())
    VICTIMS[victim](manager).kill()
    healed = manager.ensure(stub(), lost=lost)
    assert healed.start_id != lost.start_id
    assert embed(healed, "hello").status_code == 200


@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_while_the_server_stops(manager: Manager, stub: Stub, victim: str) -> None:
    spec = stub()
    server = manager.ensure(spec)
    processes = {name: find(manager) for name, find in VICTIMS.items()}
    slow = threading.Thread(target=lambda: _ignoring_errors(lambda: embed(server, "SLOW 2")))
    slow.start()
    waiting.until(lambda: in_flight(server))
    stopper = threading.Thread(target=manager.stop)
    stopper.start()
    waiting.until(lambda: manager.status()[0].state is State.STOPPING)
    kill(processes[victim])
    stopper.join()
    slow.join()
    assert_works(manager, spec)


@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_with_children_that_outlive_it(
    manager: Manager, home: Path, stub: Stub, victim: str
) -> None:
    spec = stub(faults="leaves-children")
    lost = manager.ensure(spec)
    kill(VICTIMS[victim](manager))
    waiting.until(lambda: refuses(lost))
    assert_works(manager, spec)
    manager.stop()
    assert leftovers.find([str(home)]) == []


def test_stop_ends_orphans_of_a_killed_supervisor(manager: Manager, home: Path, stub: Stub) -> None:
    manager.ensure(stub(faults="leaves-children"))
    supervisor = supervisor_of(manager)
    supervisor.suspend()  # or it would start another orphan reaper
    kill(next(p for p in supervisor.children() if "orphan_reaper.py" in " ".join(p.cmdline())))
    kill(supervisor)
    assert leftovers.find([str(home)]), "the orphans of this case are there"
    manager.stop()
    assert leftovers.end_all([str(home)]) == []


def test_start_sweeps_orphans_of_other_models(manager: Manager, home: Path, stub: Stub) -> None:
    manager.ensure(stub("a", faults="leaves-children"))
    kill(supervisor_of(manager))
    server = manager.ensure(stub("b"))
    left = leftovers.find([f"stub/a?count={home.parent}"])
    marked = [p for p in leftovers.find([str(home)]) if str(server.folder) not in _mark(p)]
    assert left == []
    assert [p for p in marked if "sleep" in " ".join(p.cmdline())] == []


MOMENTS = {
    "holding the lock": "locks.start_lock",
    "holding the liveness lock": "state.write_record",
    "before it runs the supervisor": "spawn.run_supervisor",
    "before it sees the supervisor": "spawn._await_takeover",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_caller_is_killed_during_the_start(
    manager: Manager, home: Path, stub: Stub, moment: str
) -> None:
    spec = stub()
    module, _, function = MOMENTS[moment].rpartition(".")
    code = (
        "import os, sys\n"
        f"from emberd.manager import {module}, Timing\n"
        "from emberd.verified_manager import Manager\n"
        "from emberd.settings import ServerSpec\n"
        f"{module}.{function} = lambda *args, **more: os.kill(os.getpid(), 9)\n"
        f"Manager({str(home)!r}, timing=Timing(**{asdict(QUICK)})).ensure("
        f"ServerSpec(**{asdict(spec)}))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    starter = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert starter.returncode == -signal.SIGKILL
    assert_works(manager, spec)


def test_start_continues_if_its_caller_is_killed_while_it_waits(
    manager: Manager, home: Path, stub: Stub, starts: Starts
) -> None:
    spec = stub(start=1)
    starter = clients.begin(home, spec, QUICK)
    clients.wait_until_loaded(starter)
    clients.release(starter)
    supervisor_of(manager)
    starter.kill()
    starter.communicate()
    assert_works(manager, spec)
    assert starts() == 1


def test_start_whose_supervisor_is_killed_three_times_is_refused(
    manager: Manager, stub: Stub, starts: Starts
) -> None:
    spec = stub(start=60)
    for _ in range(3):
        begin(manager, spec)
        kill(supervisor_of(manager))
        waiting.until(lambda: manager.status()[0].state is not State.STARTING)
    with pytest.raises(StartError, match="3 starts in a row were killed"):
        manager.ensure(spec)
    assert starts() <= 3


def test_start_whose_server_is_killed_three_times_is_refused(
    manager: Manager, stub: Stub, starts: Starts
) -> None:
    spec = stub(start=60)
    for _ in range(3):
        begin(manager, spec)
        supervisor = supervisor_of(manager)
        kill(engine_of(manager))
        # While it runs, the next caller joins the failed start instead of making a new one.
        wait_until_gone(supervisor)
        assert manager.status()[0].state is State.FAILED
    with pytest.raises(StartError, match="The stub was killed"):
        manager.ensure(spec)
    assert starts() == 3


def _log(path: str) -> str:
    with contextlib.suppress(FileNotFoundError):  # between two starts it is renamed
        return Path(path).read_text() if path else ""
    return ""


def _mark(process: psutil.Process) -> str:
    return str(process.environ().get("EMBERD_MARK", ""))


def _ignoring_errors(call: Callable[[], object]) -> None:
    import httpx

    with contextlib.suppress(httpx.HTTPError):
        call()

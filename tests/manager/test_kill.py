"""kill -9 of each process in each state: the next ensure works, and no process is left.

This is checked at the end of every test, by the ``manager`` fixture.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

import clients
import leftovers
import waiting
from emberd import probe
from emberd.errors import StartError
from emberd.manager import State
from emberd.settings import ServerSpec
from emberd.verified_manager import Manager
from homes import QUICK, Starts, Stub, begin, server_of
from plain_client import embed, in_flight


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


@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_while_a_caller_waits_for_the_start(
    manager: Manager, home: Path, stub: Stub, victim: str
) -> None:
    spec = stub(start=1)
    waiter = clients.begin(home, spec, QUICK)
    clients.wait_until_loaded(waiter)
    clients.let_go(waiter)
    waiting.until(manager.status)
    kill(VICTIMS[victim](manager))
    answer = clients.answer(waiter)
    assert answer.get("url") or "killed" in answer["text"], "neither hangs nor lies"
    assert_works(manager, spec)


@pytest.mark.parametrize("victim", VICTIMS)
def test_killed_while_the_server_is_ready(manager: Manager, stub: Stub, victim: str) -> None:
    lost = manager.ensure(stub())
    kill(VICTIMS[victim](manager))
    waiting.until(lambda: not probe.is_ready(lost.endpoint.url))
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
    waiting.until(lambda: not probe.is_ready(lost.endpoint.url))
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
    clients.let_go(starter)
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


def _mark(process: psutil.Process) -> str:
    return str(process.environ().get("EMBERD_MARK", ""))


def _ignoring_errors(call: Callable[[], object]) -> None:
    import httpx

    with contextlib.suppress(httpx.HTTPError):
        call()

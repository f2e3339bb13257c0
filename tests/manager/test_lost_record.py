"""A record that is lost or damaged: rewritten by a living supervisor, and bounded waits without it.

That no process is left is checked at the end of every test, by the ``manager`` fixture.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

import damage
import leftovers
import waiting
from emberd.errors import StartTimeoutError, StateFolderError
from emberd.manager import State, cleanup, locks, lost_records, state, stopping
from emberd.manager.state import Server, ServerStatus
from emberd.settings import ServerSpec
from emberd.system import processes
from emberd.verified_manager import Manager
from homes import QUICK, Starts, Stub, begin
from plain_client import embed, in_flight

SHORT_WAIT = replace(QUICK, record_s=0.5)


def record_of(server: Server) -> Path:
    """Return the file of a server's record."""
    return Path(server.folder or "") / state.RECORD_NAME


def starting(manager: Manager, spec: ServerSpec) -> tuple[Path, ServerStatus]:
    """Start a server, and return its record's file and status while it loads."""
    begin(manager, spec)

    def loading() -> ServerStatus | None:
        (status,) = manager.status()
        return status if status.detail == "loading" else None

    status = waiting.until(loading)
    assert status is not None
    return Path(status.log_path).with_name(state.RECORD_NAME), status


@contextmanager
def frozen(pid: int | None) -> Iterator[psutil.Process]:
    """Stop a supervisor by a signal, so that it rewrites nothing."""
    supervisor = psutil.Process(pid)
    supervisor.suspend()
    # The signal acts on the next return to user space; a write could be under way.
    waiting.until(lambda: supervisor.status() == psutil.STATUS_STOPPED)
    try:
        yield supervisor
    finally:
        with suppress(psutil.NoSuchProcess):
            supervisor.resume()


def supervisor_pid(manager: Manager) -> int:
    """Return the pid of the only supervisor."""
    (status,) = manager.status()
    assert status.supervisor_pid is not None
    return status.supervisor_pid


def marked_child(folder: str) -> subprocess.Popen[bytes]:
    """Start a process with the mark of a state folder in its environment."""
    environment = {**os.environ, processes.MARK: f"{folder}:{'0' * 16}"}
    child = subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.pause()"], env=environment
    )
    # Between fork and exec it has the environment of this process.
    waiting.until(lambda: list(processes.marked(folder)))
    return child


# ---------------------------------------------------------------- it is rewritten


def test_ready_supervisor_rewrites_its_record(manager: Manager, stub: Stub) -> None:
    server = manager.ensure(stub())
    file = record_of(server)
    before = file.read_bytes()
    for kind in damage.OF_RECORD:
        print(kind)  # shown if it fails
        damage.OF_RECORD[kind](file)
        damage.wait_until_repaired(file, before)
        assert manager.ensure(stub()).start_id == server.start_id
    (stopped,) = manager.stop()
    assert (stopped.start_id, stopped.state) == (server.start_id, State.READY)


def test_starting_supervisor_rewrites_its_record(manager: Manager, stub: Stub) -> None:
    file, status = starting(manager, stub(start=600))
    before = file.read_bytes()
    for kind in damage.USUAL:
        print(kind)  # shown if it fails
        damage.OF_RECORD[kind](file)
        damage.wait_until_repaired(file, before)
        assert [s.start_id for s in manager.status()] == [status.start_id]
    (stopped,) = manager.stop()
    assert (stopped.start_id, stopped.state) == (status.start_id, State.STARTING)


def test_supervisor_that_waits_for_a_gpu_rewrites_its_record(manager: Manager, stub: Stub) -> None:
    starting(manager, stub("first", claims="card", start=600))
    begin(manager, stub("second", claims="card"))
    status = waiting.until(
        lambda: next(
            (s for s in manager.status() if s.detail == "waiting for the GPU (card)"), None
        )
    )
    assert status is not None
    file = Path(status.log_path).with_name(state.RECORD_NAME)
    for kind in ("missing", "directory"):
        print(kind)  # shown if it fails
        damage.OF_RECORD[kind](file)
        waiting.until(lambda: file.is_file() and state.read_record(file.parent))
        assert {s.start_id for s in manager.status()} >= {status.start_id}


def test_record_is_rewritten_each_time_it_is_lost(manager: Manager, stub: Stub) -> None:
    file = record_of(manager.ensure(stub()))
    before = file.read_bytes()
    for _ in range(3):
        file.unlink()
        damage.wait_until_repaired(file, before)


def test_record_that_is_lost_while_the_server_drains_is_rewritten(
    manager: Manager, stub: Stub
) -> None:
    server = manager.ensure(stub())
    slow = threading.Thread(target=lambda: embed(server, "SLOW 3"))
    slow.start()
    waiting.until(lambda: in_flight(server))
    stopper = threading.Thread(target=manager.stop)
    stopper.start()
    waiting.until(lambda: manager.status()[0].state is State.STOPPING)
    record_of(server).unlink()
    waiting.until(lambda: state.read_record(Path(server.folder or "")))
    assert manager.status()[0].state is State.STOPPING
    slow.join()
    stopper.join()
    (status,) = manager.status()
    assert (status.state, status.detail) == (State.ABSENT, "stopped on request")


# ---------------------------------------------------------------- concurrent callers


def test_caller_gets_the_running_server_although_its_record_was_just_lost(
    manager: Manager, stub: Stub, starts: Starts
) -> None:
    server = manager.ensure(stub())
    before = record_of(server).read_bytes()
    for kind in damage.USUAL:
        print(kind)  # shown if it fails
        damage.OF_RECORD[kind](record_of(server))
        again = manager.ensure(stub(), start_timeout=20)
        assert (again.start_id, again.endpoint, again.started) == (
            server.start_id,
            server.endpoint,
            False,
        )
        damage.wait_until_repaired(record_of(server), before)
    assert starts() == 1


def test_caller_that_began_a_start_gets_it_although_its_record_was_lost(
    manager: Manager, stub: Stub, starts: Starts
) -> None:
    got: list[Server] = []
    waiter = threading.Thread(target=lambda: got.append(manager.ensure(stub(start=2))))
    waiter.start()
    status = waiting.until(lambda: next((s for s in manager.status() if s.supervisor_pid), None))
    assert status is not None
    Path(status.log_path).with_name(state.RECORD_NAME).unlink()
    waiter.join(timeout=30)
    assert [(server.start_id, server.started) for server in got] == [(status.start_id, True)]
    assert starts() == 1


def test_find_and_status_see_a_server_whose_record_was_just_lost(
    manager: Manager, stub: Stub
) -> None:
    server = manager.ensure(stub())
    record_of(server).unlink()
    (status,) = manager.status()
    assert (status.start_id, status.state) == (server.start_id, State.READY)
    record_of(server).unlink()
    found = manager.find(stub())
    assert found is not None
    assert found.start_id == server.start_id


def test_job_goes_on_with_its_server_while_the_record_is_lost(manager: Manager, stub: Stub) -> None:
    server = manager.ensure(stub())
    with frozen(supervisor_pid(manager)):
        record_of(server).unlink()
        assert manager.is_current(server)
        manager.used(server)


# ---------------------------------------------------------------- a frozen supervisor


def test_caller_gets_an_error_soon_if_the_supervisor_does_not_rewrite_the_record(
    manager: Manager, home: Path, stub: Stub
) -> None:
    server = manager.ensure(stub())
    asking = Manager(home, timing=SHORT_WAIT)
    with frozen(supervisor_pid(manager)) as supervisor:
        record_of(server).unlink()
        for ask in (asking.find, lambda s: asking.ensure(s, start_timeout=10)):
            with pytest.raises(StateFolderError, match="emberd stop") as error:
                ask(stub())
            assert str(server.folder) in str(error.value)
            assert str(supervisor.pid) in str(error.value)
    manager.stop()


def test_caller_whose_start_timeout_ends_the_wait_for_a_lost_record_is_told_so(
    manager: Manager, home: Path, stub: Stub
) -> None:
    server = manager.ensure(stub())
    with frozen(supervisor_pid(manager)):
        record_of(server).unlink()
        with pytest.raises(StartTimeoutError, match="start_timeout"):
            Manager(home, timing=replace(QUICK, record_s=3600)).ensure(stub(), start_timeout=0.5)


def test_stop_ends_a_server_of_another_version(manager: Manager, home: Path, stub: Stub) -> None:
    server = manager.ensure(stub())
    with frozen(
        supervisor_pid(manager)
    ) as supervisor:  # or it would put its own record there again
        damage.change(schema=1)(record_of(server))
        asking = Manager(home, timing=SHORT_WAIT)
        with pytest.raises(StateFolderError, match="emberd stop"):
            asking.ensure(stub())
        (was,) = asking.stop(stub())
        assert processes.identify(supervisor.pid) is None
    assert (was.state, was.start_id, was.supervisor_pid) == (
        "unknown",
        server.start_id,
        supervisor.pid,
    )
    assert leftovers.find([str(home)]) == []
    assert manager.ensure(stub()).started


def test_caller_that_waits_for_a_start_gets_an_error_if_its_record_stays_lost(
    manager: Manager, home: Path, stub: Stub
) -> None:
    spec = stub(start=600)
    file, status = starting(manager, spec)
    errors: list[Exception] = []

    def wait() -> None:
        try:
            Manager(home, timing=SHORT_WAIT).ensure(spec, start_timeout=15)
        except StateFolderError as error:
            errors.append(error)

    with frozen(status.supervisor_pid):
        waiter = threading.Thread(target=wait)
        waiter.start()
        file.unlink()
        waiter.join(timeout=60)
    assert len(errors) == 1
    manager.stop()


def test_status_shows_a_server_whose_record_stays_lost(
    manager: Manager, home: Path, stub: Stub
) -> None:
    server = manager.ensure(stub())
    pid = supervisor_pid(manager)
    with frozen(pid) as supervisor:
        children = supervisor.children(recursive=True)
        record_of(server).unlink()
        (status,) = Manager(home, timing=SHORT_WAIT).status()
    assert (status.state, status.supervisor_pid, status.start_id) == (
        "unknown",
        pid,
        server.start_id,
    )
    marked = [child for child in children if processes.MARK in child.environ()]
    assert marked
    assert all(str(child.pid) in status.detail for child in marked)


def test_stop_ends_a_frozen_supervisor_whose_record_is_lost_in_an_orderly_way(
    manager: Manager, home: Path, stub: Stub
) -> None:
    server = manager.ensure(stub(faults="leaves-children"))
    with frozen(supervisor_pid(manager)):
        record_of(server).unlink()
        (was,) = Manager(home, timing=SHORT_WAIT).stop()
    assert (was.state, was.start_id) == ("unknown", server.start_id)
    assert leftovers.find([str(home)]) == []
    (status,) = manager.status()
    assert (status.state, status.detail) == (State.ABSENT, "stopped on request")
    assert manager.ensure(stub(faults="leaves-children")).started


def test_stop_kills_a_supervisor_that_does_not_end_and_what_it_started(
    manager: Manager, home: Path, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "SIGCONT", signal.SIGWINCH)
    monkeypatch.setattr(stopping, "_MARGIN_S", 0.0)
    monkeypatch.setattr(stopping, "_UNKNOWN_DRAIN_S", 0.0)
    server = manager.ensure(stub(faults="leaves-children"))
    with frozen(supervisor_pid(manager)) as supervisor:
        record_of(server).unlink()
        Manager(home, timing=replace(SHORT_WAIT, kill_s=0.5)).stop()
        waiting.until(lambda: processes.identify(supervisor.pid) is None)
    assert leftovers.end_all([str(home)]) == []
    assert manager.status() == []


def test_stop_of_one_model_finds_its_server_by_the_folder(
    manager: Manager, home: Path, stub: Stub
) -> None:
    one, other = manager.ensure(stub("a")), manager.ensure(stub("b"))
    pid = next(s.supervisor_pid for s in manager.status() if s.start_id == one.start_id)
    with frozen(pid):
        record_of(one).unlink()
        (was,) = Manager(home, timing=SHORT_WAIT).stop(stub("a"))
    assert was.start_id == one.start_id
    assert manager.is_current(other)


def test_stop_waits_for_a_lost_record_no_longer_than_its_caller_says(
    manager: Manager, home: Path, stub: Stub
) -> None:
    server = manager.ensure(stub())
    patient = Manager(home, timing=replace(QUICK, record_s=3600))
    with frozen(supervisor_pid(manager)):
        record_of(server).unlink()
        (was,) = patient.stop(stub(), deadline_s=time.monotonic())
    assert (was.state, was.start_id) == ("unknown", server.start_id)


# ---------------------------------------------------------------- who may be signalled


def test_stop_does_not_signal_a_process_that_only_the_record_names(
    manager: Manager, home: Path, stub: Stub
) -> None:
    """The record may be a copy of another server's, or name any process of this user."""
    one, other = manager.ensure(stub("a")), manager.ensure(stub("b"))
    pid = next(s.supervisor_pid for s in manager.status() if s.start_id == one.start_id)
    with frozen(pid) as supervisor:
        record_of(one).write_bytes(record_of(other).read_bytes())
        Manager(home, timing=SHORT_WAIT).stop(stub("a"))
        waiting.until(lambda: processes.identify(supervisor.pid) is None)
    assert manager.is_current(other)
    assert embed(other, "hello").status_code == 200


def test_supervisor_is_distinguished_from_processes_that_imitate_one(
    manager: Manager, stub: Stub, tmp_path: Path
) -> None:
    server = manager.ensure(stub())
    folder = Path(server.folder or "")
    pid = supervisor_pid(manager)
    words = psutil.Process(pid).cmdline()
    sleep = [sys.executable, "-c", "input()"]
    # The command line of the supervisor, but its descriptor is open on something else.
    named = subprocess.Popen([*sleep, *words[2:-1], "0"], stdin=subprocess.PIPE)
    # The file of the liveness lock is open, but it is not a supervisor.
    descriptor = os.open(locks.liveness_path(folder), os.O_RDWR)
    opened = subprocess.Popen(
        [*sleep, str(descriptor)], stdin=subprocess.PIPE, pass_fds=[descriptor]
    )
    try:
        ((found, start_id),) = lost_records.find_supervisors(folder).items()
        assert (found.pid, start_id) == (pid, server.start_id)
        for other in (named, opened):
            identity = processes.identify(other.pid)
            assert identity is not None
            assert lost_records.find_supervisors(folder, identity.pid) == {}
        assert lost_records.find_supervisors(folder, pid) == {found: start_id}
        assert replace(found, start="1") not in lost_records.find_supervisors(folder, pid)
        assert lost_records.find_supervisors(tmp_path) == {}
    finally:
        os.close(descriptor)
        for other in (named, opened):
            other.kill()
            other.communicate()


def test_lock_held_by_a_process_that_is_no_supervisor_is_an_error_and_no_signal(
    manager: Manager, home: Path, stub: Stub
) -> None:
    server = manager.ensure(stub())
    manager.stop()
    record_of(server).unlink()
    asking = Manager(home, timing=SHORT_WAIT)
    descriptor = locks.take_liveness(Path(server.folder or ""))
    assert descriptor is not None
    marked = marked_child(str(server.folder))
    try:
        with pytest.raises(StateFolderError, match="fuser"):
            asking.ensure(stub(), start_timeout=10)
        (status,) = asking.status()
        assert (status.state, status.supervisor_pid) == ("unknown", None)
        with pytest.raises(StateFolderError, match="nothing was stopped"):
            asking.stop()
        assert marked.poll() is None
    finally:
        locks.release(descriptor)
        marked.kill()
        marked.communicate()
    assert manager.ensure(stub()).started


# ---------------------------------------------------------------- a dead supervisor


@contextmanager
def orphans(manager: Manager, home: Path, stub: Stub, kind: str) -> Iterator[list[psutil.Process]]:
    """Kill supervisor and orphan reaper, and damage the record: the orphans go on running."""
    server = manager.ensure(stub(faults="leaves-children,leaves-files"))
    with frozen(supervisor_pid(manager)) as supervisor:  # or it would start another orphan reaper
        guard = next(
            p for p in supervisor.children() if "orphan_reaper.py" in " ".join(p.cmdline())
        )
        for victim in (guard, supervisor):
            victim.kill()
        waiting.until(lambda: not locks.is_alive(Path(server.folder or "")))
    damage.OF_RECORD[kind](record_of(server))
    left = waiting.until(lambda: leftovers.find([str(home)]))
    yield [orphan for orphan in left if orphan.is_running()]


_OF_DEAD = ["missing", "empty", "directory", "wrong-types"]


@pytest.mark.parametrize("kind", _OF_DEAD)
def test_stop_ends_orphans_whose_record_is_damaged(
    manager: Manager, home: Path, stub: Stub, kind: str
) -> None:
    with orphans(manager, home, stub, kind):
        (status,) = manager.status()
        assert (status.state, status.supervisor_pid) == ("unknown", None)
        assert manager.stop()[0].start_id == status.start_id
    assert leftovers.end_all([str(home)]) == []
    assert not Path(cleanup.scratch_path(status.start_id)).exists()
    assert manager.status() == []


@pytest.mark.parametrize("kind", _OF_DEAD)
def test_start_sweeps_orphans_whose_record_is_damaged(
    manager: Manager, home: Path, stub: Stub, kind: str
) -> None:
    with orphans(manager, home, stub, kind) as left:
        assert manager.ensure(stub("another")).started
        assert [orphan for orphan in left if processes.identify(orphan.pid)] == []


def test_damaged_record_of_a_stopped_server_does_not_keep_the_next_from_starting(
    manager: Manager, stub: Stub
) -> None:
    server = manager.ensure(stub())
    for kind in damage.USUAL:
        print(kind)  # shown if it fails
        manager.stop()
        damage.OF_RECORD[kind](record_of(server))
        assert manager.ensure(stub()).started


def test_supervisor_ends_with_its_server_if_the_whole_home_is_deleted(
    manager: Manager, home: Path, stub: Stub
) -> None:
    manager.ensure(stub(faults="leaves-children"))
    waiting.remove(home)
    assert leftovers.end_all([str(home)]) == []
    assert not home.exists()


def test_start_timeout_bounds_the_wait_for_a_supervisor_that_does_not_run(
    home: Path, stub: Stub
) -> None:
    manager = Manager(home, timing=replace(QUICK, lost_s=60.0))
    server = manager.ensure(stub())
    with frozen(supervisor_pid(manager)) as supervisor:
        for child in supervisor.children():
            if "orphan_reaper.py" not in " ".join(child.cmdline()):
                child.kill()
        began_s = time.monotonic()
        for lost in (server, None):
            with pytest.raises(StartTimeoutError):
                manager.ensure(stub(), start_timeout=0.5, lost=lost)
        assert time.monotonic() - began_s < 30
    assert manager.ensure(stub()).start_id != server.start_id
    manager.stop()

"""The end of a server: on request, idle, killed after its drain, or without a folder."""

from __future__ import annotations

import resource
import threading
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest

import leftovers
import waiting
from emberd import probe
from emberd.errors import ServerStoppedError
from emberd.manager import State, idle, locks
from emberd.verified_manager import Manager
from homes import QUICK, Starts, Stub, server_of
from plain_client import embed, in_flight, refuses


def test_stop_ends_supervisor_and_server_and_returns_their_status(
    manager: Manager, stub: Stub, home: Path
) -> None:
    url = manager.ensure(stub()).endpoint.url
    (was,) = manager.stop()
    assert was.url == url
    assert leftovers.find([str(home)]) == []
    (now,) = manager.status()
    assert now.state is State.ABSENT
    assert now.detail == "stopped on request"


def test_stop_with_nothing_running_stops_nothing(manager: Manager) -> None:
    assert manager.stop() == []


def test_stop_of_one_model_leaves_the_others(manager: Manager, stub: Stub) -> None:
    one, other = manager.ensure(stub("a")), manager.ensure(stub("b"))
    assert [was.url for was in manager.stop(stub("a"))] == [one.endpoint.url]
    assert probe.is_ready(other.endpoint.url)


def test_a_request_in_flight_is_answered_before_the_server_goes(
    manager: Manager, stub: Stub
) -> None:
    server = manager.ensure(stub())
    replies: list[int] = []
    request = threading.Thread(target=lambda: replies.append(embed(server, "SLOW 1").status_code))
    request.start()
    waiting.until(lambda: in_flight(server))
    manager.stop()
    request.join()
    assert replies == [200]


def test_a_server_that_will_not_go_is_killed_after_its_drain(
    manager: Manager, stub: Stub, home: Path
) -> None:
    manager.ensure(stub(faults="ignores-term", drain=0.3))
    manager.stop()
    assert leftovers.find([str(home)]) == []


def test_descendants_end_with_the_server_in_its_group_and_outside(
    manager: Manager, stub: Stub, home: Path
) -> None:
    manager.ensure(stub(faults="leaves-children"))
    supervisor = psutil.Process(manager.status()[0].supervisor_pid)
    assert len(supervisor.children(recursive=True)) == 4  # server, its two, orphan reaper
    manager.stop()
    assert leftovers.find([str(home)]) == []


def test_ensure_while_a_server_stops_waits_and_starts_the_next(
    manager: Manager, stub: Stub
) -> None:
    spec = stub()
    first = manager.ensure(spec)
    slow = threading.Thread(target=lambda: embed(first, "SLOW 1"))
    slow.start()
    waiting.until(lambda: in_flight(first))
    stopper = threading.Thread(target=manager.stop)
    stopper.start()
    waiting.until(lambda: manager.status()[0].state is State.STOPPING)
    second = manager.ensure(spec)
    slow.join()
    stopper.join()
    assert second.started
    assert second.folder == first.folder, "the two never ran side by side"


def test_requested_stop_is_not_undone_by_a_reconnecting_client(
    manager: Manager, stub: Stub
) -> None:
    server = manager.ensure(stub())
    manager.stop()
    with pytest.raises(ServerStoppedError, match="stopped on request"):
        manager.ensure(stub(), lost=server)


def test_new_job_starts_a_server_that_was_stopped(manager: Manager, stub: Stub) -> None:
    manager.ensure(stub())
    manager.stop()
    assert manager.ensure(stub()).started


def test_idle_server_stops_and_records_the_reason(manager: Manager, stub: Stub, home: Path) -> None:
    manager.ensure(stub(), idle_timeout=0.5)
    waiting.until(lambda: manager.status()[0].state is State.ABSENT)
    assert "not used for" in manager.status()[0].detail
    assert leftovers.end_all([str(home)]) == []


def test_server_that_stopped_idle_is_restarted_by_a_reconnecting_client(
    manager: Manager, stub: Stub
) -> None:
    server = manager.ensure(stub(), idle_timeout=0.5)
    waiting.until(lambda: manager.status()[0].state is State.ABSENT)
    assert manager.ensure(stub(), lost=server).started


def test_the_longest_idle_time_that_any_client_asked_for_counts(
    manager: Manager, stub: Stub
) -> None:
    manager.ensure(stub(), idle_timeout=0.5)
    server = manager.ensure(stub(), idle_timeout=None)
    with pytest.raises(AssertionError, match="still"):
        waiting.until(lambda: manager.status()[0].state is State.ABSENT, seconds=1.5)
    assert probe.is_ready(server.endpoint.url)


def test_a_server_busy_with_requests_of_others_is_not_idle(manager: Manager, stub: Stub) -> None:
    server = manager.ensure(stub(), idle_timeout=1.5)
    for _ in range(25):
        assert embed(server, "SLOW 0.1").status_code == 200


def test_a_server_busy_with_one_long_request_is_not_idle_until_it_is_done(
    manager: Manager, stub: Stub
) -> None:
    server = manager.ensure(stub(), idle_timeout=0.5)
    assert embed(server, "SLOW 2").status_code == 200
    waiting.until(lambda: manager.status()[0].state is State.ABSENT)


def test_running_job_gets_an_error_after_a_stop(
    manager: Manager, stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would go on sending, and a server that refuses nothing would never have drained."""
    server = manager.ensure(stub())
    manager.used(server)
    request = threading.Thread(target=lambda: embed(server, "SLOW 2"))
    request.start()
    waiting.until(lambda: in_flight(server))
    stopping = threading.Thread(target=manager.stop)
    stopping.start()
    waiting.until(lambda: manager.status()[0].state is State.STOPPING)
    monkeypatch.setattr(idle, "_touched", {})  # as if a second had passed
    with pytest.raises(ServerStoppedError):
        manager.used(server)
    request.join()
    stopping.join()


def test_used_keeps_a_server_from_going_idle(manager: Manager, stub: Stub) -> None:
    server = manager.ensure(stub(), idle_timeout=1.5)

    def absent_although_used() -> bool:
        manager.used(server)
        return manager.status()[0].state is State.ABSENT

    with pytest.raises(AssertionError, match="still"):
        waiting.until(absent_although_used, seconds=3)


@pytest.mark.parametrize("replaced", [False, True])
def test_supervisor_ends_without_writing_if_its_folder_is_deleted_or_replaced(
    manager: Manager, stub: Stub, home: Path, replaced: bool
) -> None:
    server = manager.ensure(stub())
    folder = Path(server.folder or "")
    waiting.remove(folder)
    if replaced:
        folder.mkdir(mode=0o700)
        (folder / "alive").touch()
    assert leftovers.end_all([str(home)]) == []
    assert not (folder / "record.json").exists()


def test_hung_server_is_ended_once_clients_report_it(manager: Manager, stub: Stub) -> None:
    server = manager.ensure(stub())

    def wedge() -> None:
        with pytest.raises(httpx.HTTPError):
            embed(server, "WEDGE")

    wedging = threading.Thread(target=wedge)
    wedging.start()
    waiting.until(lambda: not probe.is_healthy(server.endpoint.url))
    manager.report_unresponsive(server)
    waiting.until(lambda: manager.status()[0].state is State.FAILED)
    wedging.join()
    assert "stopped answering" in manager.status()[0].detail
    assert manager.ensure(stub(), lost=server).started


def test_reported_server_that_answers_is_kept(manager: Manager, stub: Stub) -> None:
    server = manager.ensure(stub())
    manager.report_unresponsive(server)
    waiting.until(lambda: not (Path(server.folder or "") / "suspect").exists())
    assert locks.is_alive(Path(server.folder or ""))
    assert manager.ensure(stub()).endpoint == server.endpoint


def test_caller_waiting_for_a_start_that_is_stopped_gets_an_error(
    manager: Manager, stub: Stub, starts: Starts
) -> None:
    spec = stub(start=30)
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            manager.ensure(spec)
        except ServerStoppedError as error:
            errors.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    waiting.until(lambda: any(s.supervisor_pid and s.detail == "loading" for s in manager.status()))
    manager.stop()
    waiter.join(timeout=10)
    assert len(errors) == 1
    assert starts() == 1


def test_a_stop_ends_the_server_that_it_met_and_not_the_next_one(
    manager: Manager, home: Path, stub: Stub
) -> None:
    spec = stub()
    manager.ensure(spec)
    # So slow to look that the next server is there before the stop has seen the end of the last.
    slow = Manager(home, timing=replace(QUICK, poll_s=2.0))
    stopper = threading.Thread(target=slow.stop)
    stopper.start()
    waiting.until(lambda: manager.status()[0].state is State.ABSENT)
    next_one = manager.ensure(spec)
    stopper.join(timeout=30)
    assert probe.is_ready(next_one.endpoint.url)
    assert manager.is_current(next_one)


def test_stop_of_one_server_does_not_end_jobs_on_another(manager: Manager, stub: Stub) -> None:
    spec = stub()
    manager.ensure(replace(spec, device="cpu"))
    other = manager.ensure(replace(spec, device="cuda"))
    supervisors = {status.url: status.supervisor_pid for status in manager.status()}
    first = next(url for url in supervisors if url != other.endpoint.url)
    psutil.Process(supervisors[first]).terminate()
    waiting.until(lambda: not psutil.pid_exists(supervisors[first] or 0))
    psutil.Process(supervisors[other.endpoint.url]).kill()
    assert manager.ensure(replace(spec, device="cuda"), lost=other).start_id != other.start_id


def test_start_while_a_server_stops_creates_no_second_folder(
    manager: Manager, stub: Stub, home: Path
) -> None:
    spec = stub()
    server = manager.ensure(spec)
    slow = threading.Thread(target=lambda: embed(server, "SLOW 1"))
    slow.start()
    waiting.until(lambda: in_flight(server))
    stopper = threading.Thread(target=manager.stop)
    stopper.start()
    waiting.until(lambda: manager.status()[0].state is State.STOPPING)
    manager.ensure(spec)
    slow.join()
    stopper.join()
    assert len(list(home.glob("*/servers/*"))) == 1


def test_supervisor_without_a_server_is_ended_by_the_next_call(
    manager: Manager, stub: Stub
) -> None:
    lost = manager.ensure(stub())
    supervisor = psutil.Process(manager.status()[0].supervisor_pid)
    server = server_of(supervisor)
    assert server is not None
    supervisor.suspend()
    server.kill()
    waiting.until(lambda: refuses(lost))
    assert manager.ensure(stub(), lost=lost).start_id != lost.start_id


def test_a_full_disk_does_not_keep_a_server_from_its_orderly_end(
    manager: Manager, stub: Stub, home: Path
) -> None:
    server = manager.ensure(stub())
    # Not a full disk, but the same refusal: neither the record nor the log can be written.
    supervisor = psutil.Process(manager.status()[0].supervisor_pid)
    supervisor.rlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    replies: list[int] = []
    request = threading.Thread(target=lambda: replies.append(embed(server, "SLOW 1").status_code))
    request.start()
    waiting.until(lambda: in_flight(server))
    manager.stop()
    request.join()
    assert replies == [200]
    assert leftovers.end_all([str(home)]) == []


def test_a_server_that_only_broke_one_connection_is_given_back_without_waiting_for_its_death(
    home: Path, manager: Manager, stub: Stub
) -> None:
    server = manager.ensure(stub())
    patient = Manager(home, timing=replace(QUICK, lost_s=3600))
    assert patient.ensure(stub(), lost=server).start_id == server.start_id

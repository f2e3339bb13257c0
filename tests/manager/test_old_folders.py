"""State folders of servers that ended: the processes are read a few times, not once a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import examined
from emberd.doctor import servers
from emberd.manager import State, discovery, locks, paths, state
from emberd.manager.paths import Home
from emberd.manager.state import Record
from emberd.settings import ServerSpec
from emberd.system import ownership, processes
from emberd.verified_manager import Manager
from homes import QUICK, Stub

FEW, MANY = 3, 60


def make_old_folders(home: Path, count: int, *, have_records: bool) -> None:
    """Leave what servers leave that were killed, with their records or without."""
    place = Home(home)
    for folder in (place.machine, place.servers):
        ownership.make_private(folder)
    for number in range(count):
        spec = ServerSpec(f"old/{number}")
        folder = ownership.make_private(place.server_folder(spec.key))
        paths.rotate_log(folder, "0" * 16)
        locks.liveness_path(folder).touch(mode=0o600)
        if have_records:
            own = Record(State.READY, "0" * 16, spec, QUICK, since_s=0.0, engine="stubs.engine")
            state.write_record(folder, own)


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Returns how often all processes were read since its last call."""
    counted: list[None] = []
    read = processes.pids

    def count() -> list[int]:
        counted.append(None)
        return read()

    # Servers that run on the machine of the tests are looked for by another scan.
    monkeypatch.setattr(discovery, "_processes", lambda: iter(()))
    monkeypatch.setattr(processes, "pids", count)

    def since() -> int:
        found = len(counted)
        counted.clear()
        return found

    return since


@pytest.mark.parametrize("have_records", [True, False], ids=["records", "no-records"])
@pytest.mark.parametrize("verb", ["ensure", "status", "stop", "doctor"])
def test_processes_are_not_read_once_for_each_old_folder(
    manager: Manager,
    home: Path,
    stub: Stub,
    scans: Callable[[], int],
    verb: str,
    have_records: bool,
) -> None:
    spec = stub()

    def run() -> object:
        if verb == "ensure":
            return manager.ensure(spec)
        if verb == "doctor":
            return list(servers.check_servers(examined.wanted(home)))
        return manager.status() if verb == "status" else manager.stop()

    needed = []
    for count in (FEW, MANY):
        make_old_folders(home, count, have_records=have_records)
        manager.stop(spec)
        scans()
        run()
        needed.append(scans())
    assert needed[1] <= needed[0]

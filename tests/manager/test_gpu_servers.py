"""The memory that running servers have planned is not planned again by another start."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

import waiting
from emberd.errors import EmberdError, StartError
from emberd.manager import State, gpu_servers
from emberd.manager.paths import Home
from emberd.settings import ServerSpec
from emberd.system import ownership, processes
from emberd.verified_manager import Manager
from homes import Stub, begin

CARD = {"claims": "GPU-a", "has": 20}


def outcome(manager: Manager, spec: ServerSpec) -> str:
    try:
        manager.ensure(spec)
    except EmberdError as error:
        return str(error)
    return ""


def at_once(manager: Manager, *specs: ServerSpec) -> list[str]:
    """Start servers at the same time; return the error of each, empty for those that run."""
    with ThreadPoolExecutor(len(specs)) as pool:
        return list(pool.map(lambda spec: outcome(manager, spec), specs))


def test_of_two_starts_at_once_only_one_gets_memory_for_one(manager: Manager, stub: Stub) -> None:
    specs = [stub(name, takes=12, start=0.5, **CARD) for name in ("a", "b")]
    errors = at_once(manager, *specs)
    assert sorted(map(bool, errors)) == [False, True]
    assert "only 8 bytes are free" in max(errors)


def test_two_starts_at_once_that_fit_both_run(manager: Manager, stub: Stub, home: Path) -> None:
    specs = [stub(name, takes=10, start=0.2, **CARD) for name in ("a", "b")]
    assert at_once(manager, *specs) == ["", ""]
    planned = [each.memory.planned_bytes for each in gpu_servers.of_home(home) if each.memory]
    assert planned == [10, 10]


def test_memory_of_a_ready_server_stays_planned_until_it_stops(
    manager: Manager, stub: Stub, home: Path
) -> None:
    first = stub("a", takes=12, **CARD)
    manager.ensure(first)
    with pytest.raises(StartError, match="only 8 bytes"):
        manager.ensure(stub("b", takes=12, **CARD))
    [server] = gpu_servers.of_home(home)
    assert (server.model, server.pending, server.is_placed) == (first.model, {"GPU-a": 12}, True)
    [status] = [each for each in manager.status() if each.state is State.READY]
    assert status.gpu_memory == server.memory
    manager.stop(first)
    assert gpu_servers.of_home(home) == []
    assert not any(each.gpu_memory for each in manager.status())
    manager.ensure(stub("c", takes=20, **CARD))


def test_a_failed_start_leaves_its_memory_to_the_one_that_waits(
    manager: Manager, stub: Stub, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    failing = stub("a", takes=20, start_when=go, faults="dies-at-start", **CARD)
    begin(manager, failing)
    waiting.until(lambda: any(each.gpu_memory for each in manager.status()))
    second = stub("b", takes=20, **CARD)
    begin(manager, second)
    go.touch()
    assert outcome(manager, second) == ""


def test_a_server_that_waits_for_the_gpu_has_no_place_yet(
    manager: Manager, stub: Stub, tmp_path: Path, home: Path
) -> None:
    go = tmp_path / "go"
    begin(manager, stub("a", takes=12, start_when=go, **CARD))
    waiting.until(lambda: any(each.memory for each in gpu_servers.of_home(home)))
    begin(manager, stub("b", takes=8, **CARD))
    placed = {each.model[:6]: each.is_placed for each in gpu_servers.of_home(home)}
    assert placed == {"stub/a": True, "stub/b": False}
    go.touch()


def test_a_dry_run_counts_the_memory_of_its_own_server_as_free(
    manager: Manager, stub: Stub, home: Path
) -> None:
    spec = stub("a", takes=12, **CARD)
    manager.ensure(spec)
    [server] = gpu_servers.of_home(home, restarted=spec)
    assert (server.memory, server.pending, server.is_placed) == (None, {"GPU-a": 0}, False)
    [other] = gpu_servers.of_home(home, restarted=replace(spec, model="stub/other"))
    assert other.memory is not None


def test_servers_of_other_network_namespaces_are_seen(tmp_path: Path) -> None:
    folder = tmp_path / f"{processes.namespace()}-12345" / "servers" / "0123456789abcdef"
    elsewhere = tmp_path / "another-boot" / "servers" / "0123456789abcdef"
    for each in (folder, elsewhere):
        ownership.make_private(each)
    assert Home(tmp_path).server_folders_of_machine() == [folder]
    assert gpu_servers.of_home(tmp_path) == []

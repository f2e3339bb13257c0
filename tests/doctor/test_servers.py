"""Servers that were given, that emberd keeps, and that others started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

import examined
from emberd.doctor import servers, wanted
from emberd.doctor.findings import Finding, Level
from emberd.errors import StartError
from emberd.manager import discovery
from emberd.manager.paths import Home
from emberd.settings import ServerSpec
from emberd.system import processes
from emberd.verified_manager import Manager
from fake_server import MODEL, FakeServer
from foreign import Taken


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture(autouse=True)
def _nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that happen to run on the machine of the tests are none of theirs."""
    monkeypatch.setattr(discovery, "_processes", lambda: iter(()))
    monkeypatch.setattr(discovery, "DEFAULT_PORT", 1)


def look(home: Path, model: str = MODEL, **more: Any) -> list[Finding]:
    return list(servers.check_servers(examined.wanted(home, model, **more)))


def test_where_none_runs_nothing_is_wrong(home: Path) -> None:
    assert examined.told(look(home)) == [(Level.OK, "no server is running", "")]


def test_a_server_that_was_given_and_serves_the_model_is_used(
    home: Path, server: FakeServer
) -> None:
    [found] = look(home, base_url=server.url)
    assert found.fact == f"{server.url} serves {MODEL}: 16 dimensions, 1000 tokens"
    assert found.gives.endswith("emberd uses it and starts no server")


def test_a_given_server_gets_no_more_texts_in_a_request_than_the_batch_size(
    home: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.most_texts = 2
    monkeypatch.setenv("EMBERD_HOME", str(home))
    monkeypatch.setenv("EMBERD_BASE_URL", server.url)
    for size, level in (("2", Level.OK), ("3", Level.PROBLEM)):
        monkeypatch.setenv("EMBERD_BATCH_SIZE", size)
        [found] = servers.check_servers(wanted.read({"model": MODEL}))
        assert found.level is level, found


def test_a_server_that_was_given_and_serves_another_model_is_a_problem(
    home: Path, server: FakeServer
) -> None:
    [found] = look(home, "some/other", base_url=server.url)
    assert found.level is Level.PROBLEM
    assert found.fact == f"{server.url} serves {MODEL}, but some/other was requested"
    assert "for some/other" in found.advice


def test_a_server_that_wants_another_key_is_a_problem_that_shows_none(
    home: Path, server: FakeServer
) -> None:
    server.api_key = "the-right-key"
    [found] = look(home, base_url=server.url, api_key="the-wrong-key")
    assert found.level is Level.PROBLEM
    assert "key" in found.fact
    assert "-key" not in f"{found}"
    [found] = look(home, base_url=server.url, api_key="the-right-key")
    assert found.level is Level.OK


def test_a_server_that_nobody_finds_there_is_a_problem(home: Path) -> None:
    [found] = look(home, base_url="http://127.0.0.1:9")
    assert found.level is Level.PROBLEM
    assert found.fact.startswith("No response from http://127.0.0.1:9")


def test_servers_that_hang_are_left_all_at_once(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "_SERVER_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        places = tuple(f"http://127.0.0.1:{port}/{name}" for name in "abc")
        found = look(home, base_url=places[0], discover=places[1:])
    assert [f.level for f in found] == [Level.PROBLEM, Level.NOTE, Level.NOTE]
    assert all(f"did not respond within {0.3} s" in f.fact for f in found)


def test_a_listed_server_that_fits_is_found(home: Path, server: FakeServer) -> None:
    [found] = look(home, discover=(server.url,))
    assert found.level is Level.OK
    assert "(EMBERD_DISCOVER lists it) serves" in found.gives


def test_a_server_that_wants_a_key_is_noted_with_how_to_show_it_one(
    home: Path, server: FakeServer
) -> None:
    server.api_key = "the-right-key"
    [found] = look(home, discover=(server.url,))
    assert found.level is Level.NOTE
    assert found.advice.endswith(f"export EMBERD_API_KEY=KEY EMBERD_DISCOVER={server.url}")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"engine": "demo"}, "engine=demo"),
        ({"revision": "c0ffee"}, "revision c0ffee is required, but the server reports none"),
        ({"model": "some/other"}, "some/other was requested"),
    ],
)
def test_a_listed_server_that_does_not_fit_is_noted_with_the_reason(
    home: Path, server: FakeServer, more: dict[str, Any], says: str
) -> None:
    [found] = look(home, discover=(server.url,), **more)
    assert (found.level, found.gives) == (Level.NOTE, "")
    assert says in found.fact


@pytest.mark.parametrize("recorded", [False, True])
def test_listed_address_of_another_user_is_noted_and_not_contacted(
    home: Path,
    server: FakeServer,
    taken: Callable[[int], Taken],
    monkeypatch: pytest.MonkeyPatch,
    recorded: bool,
) -> None:
    if recorded:
        monkeypatch.setenv("EMBERD_DISCOVER", server.url)
        assert Manager(home).ensure(ServerSpec(MODEL)).origin == "found"
    server.die()
    now = taken(int(server.url.rpartition(":")[2]))
    found = look(home, discover=(server.url,), api_key="the-users-key")
    assert [finding.level for finding in found] == [Level.NOTE] * (1 + recorded)
    assert str(now.user) in found[0].fact
    assert "EMBERD_BASE_URL" in found[0].advice
    assert not now.was_contacted()


def test_port_of_own_server_that_went_to_another_user_is_sent_nothing(
    manager: Manager, taken: Callable[[int], Taken]
) -> None:
    """In the moment before the supervisor has noticed that its server ended."""
    manager.ensure(ServerSpec("stub/ok", engine="stubs.engine"))
    (known,) = manager.status()
    assert servers._answers(known)
    now = taken(0)
    assert not servers._answers(replace(known, url=now.url))
    assert now.received() == b""


def test_a_server_that_emberd_keeps_is_used(home: Path, manager: Manager) -> None:
    spec = ServerSpec("stub/ok", engine="stubs.engine")
    endpoint = manager.ensure(spec).endpoint
    [found] = look(home, "stub/ok", engine="stubs.engine")
    assert found.fact.startswith(f"stub/ok is ready at {endpoint.url}")
    assert found.gives
    assert endpoint.api_key is not None
    assert endpoint.api_key not in f"{found}"
    [found] = look(home, "stub/other")
    assert (found.level, found.gives) == (Level.OK, "")


def test_a_server_of_somebody_elses_that_is_gone_gives_nothing_by_its_record(
    home: Path, manager: Manager, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBERD_DISCOVER", server.url)
    assert Manager(home).ensure(ServerSpec(MODEL)).origin == "found"
    found, remembered = look(home, discover=(server.url,))
    assert (bool(found.gives), remembered.name, remembered.gives) == (True, "own", "")
    server.die()
    assert [finding.gives for finding in look(home, discover=(server.url,))] == ["", ""]


def test_a_start_that_failed_is_noted_with_its_cause_and_log(home: Path, manager: Manager) -> None:
    spec = ServerSpec("stub/x?faults=dies-at-start", engine="stubs.engine")
    with pytest.raises(StartError) as failure:
        manager.ensure(spec)
    given = {"model": spec.model}
    [found] = look(home, spec.model, engine="stubs.engine", given=given)
    assert found.level is Level.NOTE
    assert f"is failed ({failure.value.cause})" in found.fact
    assert f"{failure.value.log_path}; then: emberd up --model" in found.advice


def test_server_whose_record_stays_lost_is_noted_with_its_processes(
    home: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "_SERVER_S", 0.3)
    folder = manager.ensure(ServerSpec("stub/ok", engine="stubs.engine")).folder or ""
    supervisor = psutil.Process(manager.status()[0].supervisor_pid)
    supervisor.suspend()
    try:
        (Path(folder) / "record.json").unlink()
        [found] = look(home, "stub/ok", engine="stubs.engine")
        assert (found.level, found.gives) == (Level.NOTE, "")
        assert folder in found.fact
        assert str(supervisor.pid) in found.fact
        assert found.advice == "emberd stop"
    finally:
        supervisor.resume()


def test_server_whose_record_was_just_lost_is_used(home: Path, manager: Manager) -> None:
    server = manager.ensure(ServerSpec("stub/ok", engine="stubs.engine"))
    (Path(server.folder or "") / "record.json").unlink()
    [found] = look(home, "stub/ok", engine="stubs.engine")
    assert (found.level, bool(found.gives)) == (Level.OK, True)


def test_processes_of_a_server_whose_record_is_gone_too_are_named(
    home: Path, manager: Manager
) -> None:
    spec = ServerSpec("stub/ok", engine="stubs.engine")
    manager.ensure(spec)
    manager.stop(spec)
    folder = os.path.realpath(Home(home).server_folder(spec.key))
    (Path(folder) / "record.json").unlink()
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(
        command,
        env={**os.environ, processes.MARK: f"{folder}:0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as left:
        assert left.stdout is not None
        left.stdout.readline()
        [found] = look(home, "stub/ok")
        left.kill()
    assert str(left.pid) in found.fact
    assert found.advice == "emberd stop"


def test_processes_of_a_server_that_is_gone_are_named(home: Path, manager: Manager) -> None:
    spec = ServerSpec("stub/ok", engine="stubs.engine")
    manager.ensure(spec)
    manager.stop(spec)
    mark = {processes.MARK: f"{os.path.realpath(Home(home).server_folder(spec.key))}:0"}
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(
        command, env={**os.environ, **mark}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as left:
        assert left.stdout is not None
        left.stdout.readline()
        found = examined.named(look(home, "stub/ok"), "leftover")
        left.kill()
    assert found.fact.endswith(f"still running: {left.pid}")
    assert found.advice.startswith("emberd stop")

"""Requests to start or replace the gateway in the background, and how often it is started again."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from emberd.cli import serve_background
from emberd.errors import EmberdError
from emberd.gateway import background_gateway, gateway_supervisor
from emberd.gateway.addresses import Addresses
from emberd.gateway.background_gateway import BackgroundGateway, GatewayRequest
from emberd.gateway.gateway_supervisor import GatewaySupervisor
from emberd.manager import State, Timing, cleanup, locks, paths
from emberd.manager.gateway_facts import GatewayFacts
from emberd.manager.paths import Home
from emberd.manager.state import Record, write_record
from emberd.settings import ServerSpec
from emberd.system import ownership
from emberd.system.log_rules import Diagnosis

SECRET = "a-password"
MOST_STARTS = 20
REQUESTS = 60


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EMBERD_HOME", str(tmp_path))
    found = Home(Path(os.path.realpath(tmp_path))).gateway
    for each in (found.parents[1], found.parent, found):
        ownership.make_private(each)
    return found


@pytest.fixture
def supervisor(folder: Path) -> Iterator[GatewaySupervisor]:
    """A supervisor whose gateways are no processes."""
    alive = locks.take_liveness(folder)
    assert alive is not None
    own = Record(
        state=State.STARTING,
        start_id="0123456789abcdef",
        spec=ServerSpec("gateway"),
        timing=Timing(),
        since_s=time.monotonic(),
        gateway=GatewayFacts("", (), ()),
    )
    yield GatewaySupervisor(folder, own, alive)
    locks.release(alive)


def _request(tmp_path: Path, **environment: str) -> GatewayRequest:
    return GatewayRequest(("m",), ("m",), Addresses(tmp_path), environment=environment)


def test_a_request_is_read_whole_or_not_at_all(folder: Path, tmp_path: Path) -> None:
    read: list[str] = []
    problems: list[EmberdError] = []
    end = threading.Event()

    def read_all() -> None:
        while not end.is_set():
            try:
                found = background_gateway.read_request(folder)
            except EmberdError as error:
                problems.append(error)
                return
            if found is not None:
                read.append(found.id)

    reader = threading.Thread(target=read_all)
    reader.start()
    try:
        written = []
        for _ in range(REQUESTS):
            request = _request(tmp_path, LARGE="x" * 1_000_000)
            BackgroundGateway()._write(request)
            written.append(request.id)
            until = time.monotonic() + 30
            while not problems and request.id not in read and time.monotonic() < until:
                time.sleep(0)
    finally:
        end.set()
        reader.join()
    assert problems == []
    assert read == written
    assert [each.name for each in folder.iterdir() if "request" in each.name] == []


def test_only_this_user_can_read_a_request(folder: Path, tmp_path: Path) -> None:
    BackgroundGateway()._write(_request(tmp_path, KEY=SECRET))
    [written] = [each for each in folder.iterdir() if SECRET in each.read_text()]
    assert written.stat().st_mode & 0o777 == 0o600


def test_a_stop_removes_the_request_of_a_killed_caller(folder: Path, tmp_path: Path) -> None:
    gateway = BackgroundGateway()
    gateway._write(_request(tmp_path, KEY=SECRET))
    gateway.stop()
    assert _files_with_the_secret(folder) == []


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_supervisor_removes_what_it_has_not_read_from_its_own_folder_only(
    folder: Path, tmp_path: Path, supervisor: GatewaySupervisor, *, is_replaced: bool
) -> None:
    if is_replaced:
        folder.rename(folder.with_name("old"))
        ownership.make_private(folder)
    BackgroundGateway()._write(_request(tmp_path, KEY=SECRET))
    supervisor._fail(Diagnosis("It failed"))
    assert len(_files_with_the_secret(folder)) == is_replaced


def _files_with_the_secret(folder: Path) -> list[Path]:
    files = [each for each in folder.iterdir() if each.is_file()]
    return [each for each in files if SECRET.encode() in (paths.read_file(each) or b"")]


@pytest.mark.parametrize("becomes_ready", [True, False])
def test_a_gateway_that_does_not_serve_for_long_is_given_up_however_long_it_starts(
    supervisor: GatewaySupervisor, monkeypatch: pytest.MonkeyPatch, *, becomes_ready: bool
) -> None:
    now, starts = 0.0, 0

    def start() -> Diagnosis | None:
        nonlocal now, starts
        starts += 1
        assert starts < MOST_STARTS, "it is started again without an end"
        server = SimpleNamespace(close=lambda: None, kill_all=lambda _: True)
        monkeypatch.setattr(supervisor, "_server", server)
        now += 600  # the servers of its models are started
        return None if becomes_ready or starts == 1 else Diagnosis("A server cannot be started")

    monkeypatch.setattr(gateway_supervisor, "_FIRST_PAUSE_S", 0)
    monkeypatch.setattr(gateway_supervisor, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(supervisor, "_start", start)
    monkeypatch.setattr(supervisor, "_until_end", lambda: Diagnosis("It ended"))
    supervisor._keep()
    assert supervisor.record.state is State.FAILED
    assert starts == gateway_supervisor._MOST_QUICK_ENDS + 1


def test_a_password_in_an_option_is_not_shown() -> None:
    arguments = ("m", "--cache", f"redis://user:{SECRET}@cache:6379/0")
    known = background_gateway.GatewayStatus(State.READY, 1.0, ("m",), arguments, pid=1)
    shown = "\n".join(serve_background.lines(known))
    assert "--cache" in shown
    assert SECRET not in shown + json.dumps(serve_background.as_content(known))


def test_the_end_of_a_log_in_an_error_has_no_secret(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text(f"cannot connect to redis://user:{SECRET}@cache:6379/0\n")
    shown = serve_background._end_of(log)
    assert "cannot connect" in shown
    assert SECRET not in shown


@pytest.mark.parametrize("state", [State.READY, State.ABSENT])
def test_only_the_socket_of_a_gateway_that_was_killed_is_removed(
    folder: Path, tmp_path: Path, supervisor: GatewaySupervisor, state: State
) -> None:
    """After an orderly end, another program may use the path."""
    path = tmp_path / "a.sock"
    (tmp_path / "a.sock.lock").touch()
    gateway = GatewayFacts("", (), (), urls=(f"unix:{path}",))
    write_record(folder, replace(supervisor.record, state=state, gateway=gateway))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        cleanup.clean_up(folder, Timing())
    assert path.exists() == (state is State.ABSENT)

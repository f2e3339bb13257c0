"""``emberd serve --background``: one gateway for a home, kept running, replaced and stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

import leftovers
import waiting
from command import ENGINE, TIMEOUT_S, Child, Command, Outcome
from emberd import Manager
from emberd.gateway.background_gateway import BackgroundGateway, GatewayStatus
from emberd.manager import State, history
from emberd.manager.paths import Home
from fake_server import QWEN, FakeServer
from gateways import own_client

SHORT = "qwen3-embedding-0.6b"
STUB = {
    "EMBERD_ENGINE": ENGINE,
    "EMBERD_QUERY_INSTRUCTION": "query: {text}",
    "EMBERD_DOCUMENT_INSTRUCTION": "",
}
CALLERS = 6
KILLS = 5
NO_TCP = "--no-tcp"


class KeptGateway:
    """A home whose gateway and servers are ended with the test."""

    def __init__(self, home: Path, variables: dict[str, str]) -> None:
        self.home = home
        self.command = Command(home, variables)

    @property
    def socket(self) -> Path:
        return self.home / "gateway" / "emberd.sock"

    def start(self, *arguments: str) -> Outcome:
        return self.command("serve", "--background", *arguments)

    def started(self, *arguments: str) -> GatewayStatus:
        outcome = self.start(*arguments)
        assert outcome.code == 0, outcome.err
        return self.status()

    def status(self) -> GatewayStatus:
        known = self.seen()
        assert known is not None
        return known

    def seen(self) -> GatewayStatus | None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("EMBERD_HOME", str(self.home))
            return BackgroundGateway().status()

    def post(self, model: str = SHORT) -> httpx.Response:
        with own_client(self.socket) as client:
            return client.post("/v1/embeddings", json={"model": model, "input": "a"})

    def metrics(self) -> str:
        with own_client(self.socket) as client:
            return client.get("/metrics").text

    def is_ready(self) -> bool:
        with own_client(self.socket) as client:
            return client.get("/ready").status_code == 200


def _kept(home: Path, variables: dict[str, str]) -> Iterator[KeptGateway]:
    kept = KeptGateway(home, variables)
    yield kept
    assert kept.command("stop").code == 0
    left = leftovers.end_all([str(home)])
    assert not left, "\n".join(left)
    assert not kept.socket.exists()
    assert [*home.rglob("*request.json*")] == []  # contains the environment


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(model=QWEN, dimensions=1024) as running:
        yield running


@pytest.fixture
def kept(tmp_path: Path, server: FakeServer) -> Iterator[KeptGateway]:
    variables = {"EMBERD_BASE_URL": server.url}
    yield from _kept(tmp_path / "home", variables)


@pytest.fixture
def with_stub(tmp_path: Path) -> Iterator[KeptGateway]:
    yield from _kept(tmp_path / "home", STUB)


def _history(kept: KeptGateway) -> list[history.Event]:
    return history.read(Home(kept.home))


def test_processes_that_ask_at_once_get_one_gateway(kept: KeptGateway) -> None:
    begun = [
        kept.command.begin("serve", "--background", QWEN, "--port", "0", "--json")
        for _ in range(CALLERS)
    ]
    replies = [each.communicate(timeout=TIMEOUT_S) for each in begun]
    assert [each.returncode for each in begun] == [0] * CALLERS, replies
    found = [json.loads(out) for out, _ in replies]
    assert len({each["pid"] for each in found}) == 1
    assert sum(each["started"] for each in found) == 1
    assert kept.is_ready()
    assert kept.post().status_code == 200
    # It is no child of the commands, and has its own session.
    assert os.getsid(found[0]["pid"]) not in (os.getsid(0), *(each.pid for each in begun))


def test_a_gateway_that_is_killed_is_replaced_on_the_same_sockets(kept: KeptGateway) -> None:
    first = kept.started(QWEN, "--port", "0")
    assert first.pid is not None
    killed = psutil.Process(first.pid)
    killed.kill()
    killed.wait(TIMEOUT_S)
    assert kept.post().status_code == 200  # it waits in the queue of the socket
    waiting.until(lambda: kept.status().state is State.READY)
    now = kept.status()
    assert (now.urls, now.restarts) == (first.urls, 1)
    events = [(each.event, each.facts.get("phase")) for each in _history(kept)]
    assert events == [("start", None), ("ready", None), ("crashed", None), ("ready", None)]
    assert now.pid != first.pid
    assert now.supervisor_pid == first.supervisor_pid


def test_a_kill_of_the_supervisor_of_a_gateway_that_was_replaced_is_in_the_history(
    kept: KeptGateway,
) -> None:
    first = kept.started(QWEN, NO_TCP)
    assert first.pid is not None
    psutil.Process(first.pid).kill()
    waiting.until(lambda: kept.status().state is State.READY and kept.status().restarts == 1)
    assert first.supervisor_pid is not None
    psutil.Process(first.supervisor_pid).kill()
    waiting.until(lambda: [each.event for each in _history(kept)][-1] == "supervisor_killed")
    assert leftovers.end_all([str(kept.home)]) == []


def test_nothing_is_left_of_a_gateway_whose_supervisor_is_killed(kept: KeptGateway) -> None:
    first = kept.started(QWEN, NO_TCP)
    assert first.supervisor_pid is not None
    psutil.Process(first.supervisor_pid).kill()
    waiting.until(lambda: not kept.socket.exists())
    assert leftovers.end_all([str(kept.home)]) == []
    assert kept.status().state is State.ABSENT
    second = kept.started(QWEN, NO_TCP)
    assert second.supervisor_pid != first.supervisor_pid
    assert kept.post().status_code == 200


def test_a_stop_removes_the_socket_of_a_gateway_that_was_killed_with_its_reaper(
    kept: KeptGateway,
) -> None:
    first = kept.started(QWEN, NO_TCP)
    supervisor = psutil.Process(first.supervisor_pid or 0)
    processes = [supervisor, *supervisor.children()]
    for each in processes:
        each.suspend()  # the supervisor starts another reaper, and a reaper removes the socket
    for each in processes:
        each.kill()
    assert kept.socket.exists()
    assert kept.command("stop", "gateway").code == 0
    assert not kept.socket.exists()


def test_another_gateway_is_refused_and_says_what_runs(kept: KeptGateway, tmp_path: Path) -> None:
    first = kept.started(QWEN, NO_TCP)
    for other in [
        (QWEN, NO_TCP, "--allow-host", "other"),
        ("emberd/demo", NO_TCP),
        (QWEN, "--port", "0"),
        (QWEN, NO_TCP, "--socket", str(tmp_path / "s"), "--replace"),
    ]:
        outcome = kept.start(*other)
        assert outcome.code == 2
        assert f"--background {QWEN} --no-tcp" in outcome.err
        assert "emberd stop gateway" in outcome.err
    assert kept.status().pid == first.pid
    # In the foreground too.
    outcome = kept.command("serve", QWEN, NO_TCP)
    assert outcome.code == 2
    assert str(first.supervisor_pid) in outcome.err


def test_it_is_shown_logged_and_stopped_by_its_name(kept: KeptGateway) -> None:
    assert kept.command("stop", "gateway").code == 0
    assert kept.command("logs", "gateway").code == 3
    assert kept.command("status", "--json").json["gateway"] is None
    status = kept.started(QWEN, NO_TCP)
    shown = kept.command("status")
    assert shown.code == 0  # it runs, although no server does
    assert [text for text in (QWEN, *status.urls, str(status.pid)) if text not in shown.out] == []
    content = kept.command("status", "--json").json
    assert content["servers"] == []
    assert content["gateway"]["state"] == "ready"
    assert f"serving {QWEN}" in kept.command("logs", "gateway").out
    assert kept.command("logs", "gateway", "--path").out.strip() == status.log_path
    assert "gateway" in kept.command("stop", "gateway").out
    assert kept.status().state is State.ABSENT
    assert kept.command("status").code == 3
    assert leftovers.end_all([str(kept.home)]) == []


def test_a_stop_answers_what_is_in_flight(kept: KeptGateway, server: FakeServer) -> None:
    kept.started(QWEN, NO_TCP)
    assert kept.post().status_code == 200
    server.latency_s = 2.0
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(kept.post)
        waiting.until(lambda: "requests_in_flight 1.0" in kept.metrics())
        assert kept.command("stop", "gateway").code == 0
        assert pending.result().status_code == 200


def test_a_replacement_under_load_loses_no_request(kept: KeptGateway, server: FakeServer) -> None:
    first = kept.started(QWEN, "--port", "0")
    url, end = first.urls[1].removesuffix("/v1"), threading.Event()
    key = (kept.home / "gateway" / "key").read_text().strip()
    statuses: list[object] = []

    def call(number: int) -> None:
        headers = {"authorization": f"Bearer {key}"}
        options: dict[str, Any] = {"timeout": 60, "trust_env": False, "verify": False}
        while not end.is_set():
            # A new connection now and then: those in the queue of a socket are lost first.
            is_unix = number % 2
            made = own_client(kept.socket) if is_unix else httpx.Client(base_url=url, **options)
            with made as client:
                for _ in range(3):
                    body = {"model": SHORT, "input": f"{number} {len(statuses)}"}
                    try:
                        reply = client.post("/v1/embeddings", json=body, headers=headers)
                        statuses.append(reply.status_code)
                    except httpx.HTTPError as error:
                        statuses.append(repr(error))

    with ThreadPoolExecutor(CALLERS) as pool:
        callers = [pool.submit(call, number) for number in range(CALLERS)]
        try:
            waiting.until(lambda: len(statuses) > 20)
            for hosts in ((), ("--allow-host", "other")):
                replaced = kept.started(QWEN, "--port", "0", *hosts, "--replace")
                more = len(statuses) + 20
                waiting.until(lambda more=more: len(statuses) > more)  # type: ignore[misc]
        finally:
            end.set()
        for caller in callers:
            caller.result(timeout=60)
    assert set(statuses) == {200}
    assert replaced.supervisor_pid == first.supervisor_pid
    assert (replaced.pid != first.pid, replaced.restarts) == (True, 0)
    waiting.until(lambda: not psutil.pid_exists(first.pid or 0))


def test_a_replacement_that_fails_leaves_the_gateway(kept: KeptGateway) -> None:
    first = kept.started(QWEN, NO_TCP)
    outcome = kept.start(QWEN, NO_TCP, "--replace", "--key-file", str(kept.home / "missing"))
    assert outcome.code == 5
    assert "missing" in outcome.err
    assert kept.status().pid == first.pid
    assert kept.post().status_code == 200
    assert kept.started(QWEN, NO_TCP, "--replace").pid != first.pid


NEVER_READY = {"EMBERD_BASE_URL": "http://127.0.0.1:9"}
"""With --preload, a gateway with this waits for a server that never answers."""


def _begin_replacement(kept: KeptGateway, start_timeout: str) -> Child:
    """Begin to replace the gateway by one that never becomes ready."""
    command = replace(kept.command, more=NEVER_READY)
    arguments = (QWEN, NO_TCP, "--preload", "--replace", "--start-timeout", start_timeout)
    begun = command.begin("serve", "--background", *arguments)
    waiting.until(lambda: "replac" in kept.status().detail)
    return begun


def test_a_successor_that_does_not_become_ready_is_given_up(kept: KeptGateway) -> None:
    first = kept.started(QWEN, NO_TCP)
    with _begin_replacement(kept, "4s") as begun:
        _, told = begun.communicate(timeout=TIMEOUT_S)
    assert begun.returncode == 5
    assert b"--start-timeout" in told
    assert (kept.status().pid, kept.status().restarts) == (first.pid, 0)
    waiting.until(lambda: _gateways(kept) == [first.pid])
    assert kept.post().status_code == 200


def test_a_successor_answers_nothing_before_it_is_ready(kept: KeptGateway) -> None:
    first = kept.started(QWEN, NO_TCP)
    with _begin_replacement(kept, "60s") as begun:
        log = Path(kept.status().log_path)
        waiting.until(lambda: "No response from" in log.read_text())
        with ThreadPoolExecutor(8) as pool:
            pending = [pool.submit(kept.is_ready) for _ in range(200)]
            assert all(each.result() for each in pending)
        assert kept.post().status_code == 200
        begun.kill()
    assert kept.status().pid == first.pid


def test_a_gateway_with_preloaded_servers_can_be_replaced(with_stub: KeptGateway) -> None:
    first = with_stub.started("stub/ok", NO_TCP, "--preload")
    second = with_stub.started("stub/ok", "stub/more", NO_TCP, "--preload", "--replace")
    assert second.pid != first.pid
    servers = Manager(with_stub.home).status()
    assert [each.state for each in servers] == [State.READY, State.READY]
    assert with_stub.is_ready()
    for _ in range(3):
        assert with_stub.post("stub/more").status_code == 200


def test_a_gateway_is_replaced_if_it_ends_while_its_successor_starts(kept: KeptGateway) -> None:
    first = kept.started(QWEN, NO_TCP)
    with _begin_replacement(kept, "60s") as begun:
        assert first.pid is not None
        psutil.Process(first.pid).kill()
        waiting.until(lambda: kept.status().restarts == 1 and kept.status().state is State.READY)
        begun.kill()
    now = kept.status()
    assert now.pid != first.pid
    # The next replacement ends the one that nobody waits for.
    last = kept.started(QWEN, NO_TCP, "--replace")
    waiting.until(lambda: _gateways(kept) == [last.pid])
    assert last.pid not in (first.pid, now.pid)
    assert kept.post().status_code == 200


def test_a_gateway_that_fails_again_and_again_can_be_replaced(
    kept: KeptGateway, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-key")
    keys.chmod(0o600)
    first = kept.started(QWEN, NO_TCP, "--key-file", str(keys))
    keys.unlink()
    assert first.pid is not None
    psutil.Process(first.pid).kill()
    waiting.until(lambda: kept.status().restarts >= 2)
    assert kept.started(QWEN, NO_TCP, "--replace").state is State.READY
    assert kept.post().status_code == 200


def test_a_gateway_whose_python_was_removed_says_so(kept: KeptGateway, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    environment.symlink_to(sys.prefix)
    line = kept.command.line("serve", "--background", QWEN, NO_TCP)
    python = environment / "bin" / Path(line[0]).name
    subprocess.run([python, *line[1:]], env=kept.command.environment, check=True)
    environment.unlink()
    psutil.Process(kept.status().pid or 0).kill()
    waiting.until(lambda: kept.status().state is State.FAILED, 2 * waiting.DEADLINE_S)
    assert str(python) in kept.status().detail
    assert "bug" not in kept.command("status", "--all").out


def test_callers_that_are_killed_at_any_moment_leave_one_gateway(kept: KeptGateway) -> None:
    began = time.monotonic()
    kept.started(QWEN, NO_TCP, "--replace")
    whole_s = time.monotonic() - began
    for part in range(1, KILLS + 1):
        caller = kept.command.begin("serve", "--background", QWEN, NO_TCP, "--replace")
        with contextlib.suppress(subprocess.TimeoutExpired):
            caller.communicate(timeout=whole_s * part / KILLS)
        caller.kill()
        caller.communicate()
        assert kept.post().status_code == 200
    last = kept.started(QWEN, NO_TCP, "--replace")
    assert last.state is State.READY
    waiting.until(lambda: len(_gateways(kept)) == 1)
    assert _gateways(kept) == [last.pid]


def _gateways(kept: KeptGateway) -> list[int]:
    """Return the children of the supervisor that serve."""
    found = []
    for each in psutil.Process(kept.status().supervisor_pid or 0).children():
        with contextlib.suppress(psutil.Error):  # one that has just ended
            if "serve" in each.cmdline():
                found.append(each.pid)
    return found


def test_a_start_that_fails_says_why_and_leaves_nothing(kept: KeptGateway, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir(mode=0o700)
    for arguments, why in [
        (("--key-file", str(tmp_path / "missing")), "missing"),
        (("--socket", str(taken)), str(taken)),
    ]:
        outcome = kept.start(QWEN, NO_TCP, *arguments)
        assert outcome.code == 5
        assert why in outcome.err
        assert kept.status().state is State.FAILED
        assert not kept.socket.exists()
    assert leftovers.end_all([str(kept.home)]) == []
    assert kept.started(QWEN, NO_TCP).state is State.READY


def test_a_gateway_that_ends_again_and_again_is_given_up(kept: KeptGateway) -> None:
    status = kept.started(QWEN, NO_TCP)
    log = Path(status.log_path)

    def is_given_up() -> bool:
        nonlocal status
        status = kept.status()
        if status.state is State.READY and status.pid is not None:
            os.kill(status.pid, signal.SIGKILL)
        return status.state is State.FAILED

    waiting.until(is_given_up, 2 * waiting.DEADLINE_S, poll_s=0.2)
    assert status.restarts == 5
    assert "SIGKILL" in status.detail
    assert log.read_text().count("SIGKILL") == 5
    assert not kept.socket.exists()


def test_relative_paths_and_keys_of_the_environment_are_those_of_the_caller(
    kept: KeptGateway, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("own-key\n")
    (tmp_path / "keys").chmod(0o600)
    line = kept.command.line("serve", "-b", QWEN, "--port", "0", "--key-file", "keys")
    subprocess.run(line, cwd=tmp_path, env=kept.command.environment, check=True, timeout=TIMEOUT_S)
    url = kept.status().urls[1]
    assert _models(url, "own-key") == 200
    kept.command("stop", "gateway")
    secret = KeptGateway(kept.home, {**kept.command.more, "EMBERD_SERVE_KEY": "secret-key"})
    status = secret.started(QWEN, "--port", "0")
    assert _models(status.urls[1], "secret-key") == 200
    assert secret.start(QWEN).code == 2  # it would have the usual port
    psutil.Process(status.pid or 0).kill()
    assert _models(status.urls[1], "secret-key") == 200
    assert _models(status.urls[1], "own-key") == 401
    written = [path for path in kept.home.rglob("*") if path.is_file()]
    assert [path for path in written if b"secret-key" in path.read_bytes()] == []


def _models(url: str, key: str) -> int:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.get(f"{url}/models", headers=headers, trust_env=False, timeout=60).status_code


def test_servers_outlive_the_gateway_and_stop_when_idle(with_stub: KeptGateway) -> None:
    with_stub.started("stub/ok", NO_TCP, "--idle-timeout", "3s")
    assert with_stub.post("stub/ok").status_code == 200
    [server] = Manager(with_stub.home).status()
    assert server.supervisor_pid is not None
    assert psutil.Process(server.supervisor_pid).ppid() != with_stub.status().supervisor_pid
    psutil.Process(with_stub.status().pid or 0).kill()
    assert with_stub.post("stub/ok").status_code == 200
    assert with_stub.command("stop", "gateway").code == 0
    [after] = Manager(with_stub.home).status()
    assert (after.state, after.start_id) == (State.READY, server.start_id)
    supervisor = psutil.Process(server.supervisor_pid)
    waiting.until(lambda: not supervisor.is_running())


def test_a_preloaded_gateway_is_started_once_its_servers_are(with_stub: KeptGateway) -> None:
    gate = with_stub.home.parent / "gate"
    model = f"stub/ok?start_when={gate}"
    line = ("serve", "--background", model, NO_TCP, "--preload")
    with with_stub.command.begin(*line) as start:
        waiting.until(with_stub.socket.exists)
        assert not with_stub.is_ready()
        assert start.poll() is None
        gate.touch()
        assert start.wait(TIMEOUT_S) == 0
    assert [server.state for server in Manager(with_stub.home).status()] == [State.READY]
    assert with_stub.is_ready()


def test_a_server_that_cannot_be_preloaded_fails_the_start(with_stub: KeptGateway) -> None:
    outcome = with_stub.start("stub/ok?faults=dies-at-start", NO_TCP, "--preload")
    assert outcome.code == 5
    assert with_stub.status().state is State.FAILED
    assert not with_stub.socket.exists()

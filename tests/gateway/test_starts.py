"""The gateway and the servers that it starts, with the stub engine."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import leftovers
import waiting
from command import ENGINE, Command
from emberd import Embedder, Manager, RequestTimeoutError
from emberd.manager import State
from fake_server import QWEN, FakeServer
from gateways import Running, serving

STUB = {
    "EMBERD_ENGINE": ENGINE,
    "EMBERD_QUERY_INSTRUCTION": "query: {text}",
    "EMBERD_DOCUMENT_INSTRUCTION": "",
}
PRELOAD = "--preload"


def _probes(running: Running) -> list[int]:
    with running.client() as client:
        return [client.get(path).status_code for path in ("/health", "/ready")]


@contextmanager
def own_gateway(tmp_path: Path, model: str, *arguments: str) -> Iterator[Running]:
    """Run a gateway with the stub engine in a home of its own."""
    home = tmp_path / "home"
    try:
        with serving(home, model, *arguments, environment=STUB) as running:
            yield running
    finally:
        Manager(home).stop()
        left = leftovers.end_all([str(home)])
        assert not left, left


def test_the_first_requests_at_once_start_one_server(tmp_path: Path) -> None:
    count = tmp_path / "starts"
    model = f"stub/ok?count={count}&start=0.5"
    with own_gateway(tmp_path, model) as own, ThreadPoolExecutor(8) as pool:
        assert not count.exists()  # no request, no server
        pending = [pool.submit(own.post, model=model, input=f"text {n}") for n in range(8)]
        assert [each.result().status_code for each in pending] == [200] * 8
    assert len(count.read_text().splitlines()) == 1


def test_a_start_that_takes_longer_than_the_caller_waits_goes_on(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    model = f"stub/ok?start_when={gate}"
    with own_gateway(tmp_path, model, "--start-timeout", "1") as own:
        reply = own.post(model=model, input="a")
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "server_starting")
        assert reply.headers["retry-after"].isdecimal()
        gate.touch()
        waiting.until(lambda: own.post(model=model, input="a").status_code == 200)


@pytest.mark.parametrize("fault", ["dies-at-start", "doomed"])
def test_a_start_that_fails_is_an_error_of_the_server(tmp_path: Path, fault: str) -> None:
    model = f"stub/ok?faults={fault}&silence=1"
    with own_gateway(tmp_path, model) as own:
        reply = own.post(model=model, input="a")
        error = reply.json()["error"]
        assert (reply.status_code, error["type"]) == (503, "api_error")
        assert error["code"] == "server_unavailable"
        assert own.post("/v1/embeddings", model="other", input="a").status_code == 404


def test_a_server_that_is_idle_stops_and_the_gateway_stays(tmp_path: Path) -> None:
    with own_gateway(tmp_path, "stub/ok", "--idle-timeout", "1s") as own:
        assert own.post(model="stub/ok", input="a").status_code == 200
        manager = Manager(tmp_path / "home")
        waiting.until(lambda: all(each.supervisor_pid is None for each in manager.status()))
        with own.client() as client:
            assert client.get("/ready").status_code == 200
        assert own.post(model="ok:query", input="a").status_code == 200


def test_a_class_whose_timeout_is_shorter_than_a_start_after_an_idle_stop_can_call_again(
    tmp_path: Path,
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    model = f"stub/ok?start_when={gate}"
    with own_gateway(tmp_path, model, "--idle-timeout", "1s") as own:
        embedder = Embedder(
            model,
            base_url=own.url,
            api_key=own.key,
            timeout=1,
            query_instruction="query: {text}",
            document_instruction="",
        )
        before = embedder.embed_query("a")
        gate.unlink()
        manager = Manager(tmp_path / "home")
        waiting.until(lambda: all(each.supervisor_pid is None for each in manager.status()))
        with pytest.raises(RequestTimeoutError):
            embedder.embed_query("a")
        assert [each.state for each in manager.status()] == [State.STARTING]
        gate.touch()
        waiting.until(lambda: [each.state for each in manager.status()] == [State.READY])
        assert (embedder.embed_query("a") == before).all()


def test_a_gateway_that_preloads_is_ready_once_its_servers_are(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    model = f"stub/ok?start_when={gate}"
    # A start that takes longer than requests wait is no failure.
    with own_gateway(tmp_path, model, PRELOAD, "--start-timeout", "1") as own:
        waiting.until(lambda: "is still starting" in own.log.read_text())
        assert _probes(own) == [200, 503]
        gate.touch()
        waiting.until(lambda: _probes(own) == [200, 200])
        assert [each.state for each in Manager(tmp_path / "home").status()] == [State.READY]


def test_a_gateway_whose_server_cannot_be_preloaded_ends_and_says_why(tmp_path: Path) -> None:
    command = Command(tmp_path / "home", STUB)
    try:
        outcome = command("serve", "stub/ok?faults=dies-at-start", "--no-tcp", PRELOAD)
        [server] = Manager(command.home).status()
    finally:
        Manager(command.home).stop()
    assert outcome.code == 5
    assert server.state is State.FAILED
    assert server.log_path in outcome.err
    assert not (command.home / "gateway" / "emberd.sock").exists()


def test_a_gateway_that_preloads_waits_for_a_given_server(tmp_path: Path) -> None:
    """As in a cluster, where both are started at the same time."""
    with FakeServer(model=QWEN, dimensions=1024) as server:
        given, port = {"EMBERD_BASE_URL": server.url}, server.port
        server.die()
        with serving(tmp_path / "home", QWEN, PRELOAD, environment=given) as own:
            waiting.until(lambda: "No response from" in own.log.read_text())
            assert _probes(own) == [200, 503]
            server.revive(port)
            waiting.until(lambda: _probes(own) == [200, 200])


def test_a_gateway_that_preloads_waits_for_a_router_that_has_no_server(tmp_path: Path) -> None:
    """Routers listen before their first server is ready, and answer 503 until then."""
    with FakeServer(model=QWEN, dimensions=1024) as server:
        server.closed.update(dict.fromkeys(server.routes(), 503))
        given = {"EMBERD_BASE_URL": server.url}
        with serving(tmp_path / "home", QWEN, PRELOAD, environment=given) as own:
            waiting.until(lambda: own.log.read_text().count("WARNING") > 1)
            assert _probes(own) == [200, 503]
            server.closed.clear()
            waiting.until(lambda: _probes(own) == [200, 200])

"""The gateway and the servers that it starts, with the stub engine."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import leftovers
import waiting
from command import ENGINE
from emberd import Manager
from gateways import Running, serving


@contextmanager
def own_gateway(tmp_path: Path, model: str, *arguments: str) -> Iterator[Running]:
    """Run a gateway with the stub engine in a home of its own."""
    home = tmp_path / "home"
    variables = {
        "EMBERD_ENGINE": ENGINE,
        "EMBERD_QUERY_INSTRUCTION": "query: {text}",
        "EMBERD_DOCUMENT_INSTRUCTION": "",
    }
    try:
        with serving(home, model, *arguments, environment=variables) as running:
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

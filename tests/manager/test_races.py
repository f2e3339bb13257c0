"""Many processes that ask at the same instant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import clients
from emberd.settings import ServerSpec
from emberd.verified_manager import Manager
from homes import QUICK, Starts, Stub

PROCESSES = 32
INTERPRETERS = 12
RUNS = int(os.environ.get("EMBERD_TEST_RACE_RUNS", "2"))


def ask_at_once(home: Path, spec: ServerSpec) -> list[dict[str, Any]]:
    """Let interpreters that are loaded go in one moment and return what each got."""
    asking = [clients.begin(home, spec, QUICK) for _ in range(INTERPRETERS)]
    try:
        for client in asking:
            clients.wait_until_loaded(client)
        for client in asking:
            clients.release(client)
        return [clients.answer(client) for client in asking]
    finally:
        for client in asking:
            client.kill()
            client.wait()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("run", range(RUNS))
def test_32_processes_at_the_same_instant_share_one_server(
    manager: Manager, home: Path, stub: Stub, starts: Starts, run: int
) -> None:
    spec = stub(f"race-{run}", start=0.3)
    check_shared(clients.forked(home, spec, QUICK, PROCESSES))
    assert starts() == 1


def test_interpreters_at_the_same_instant_share_one_server(
    manager: Manager, home: Path, stub: Stub, starts: Starts
) -> None:
    """Fewer than the forks, because each takes much longer to start."""
    check_shared(ask_at_once(home, stub(start=0.3)))
    assert starts() == 1


def check_shared(answers: list[dict[str, Any]]) -> None:
    """Check that all got one server, and that one of them started it."""
    assert len({answer["url"] for answer in answers}) == 1
    assert len({answer["start_id"] for answer in answers}) == 1
    assert [answer["started"] for answer in answers].count(True) == 1


@pytest.mark.timeout(600)
def test_32_processes_share_one_failure(home: Path, stub: Stub, starts: Starts) -> None:
    answers = clients.forked(home, stub(faults="dies-at-start", start=0.3), QUICK, PROCESSES)
    assert {answer["error"] for answer in answers} == {"StartError"}
    assert len({answer["text"] for answer in answers}) == 1
    assert starts() == 1

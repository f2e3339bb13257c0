"""Another user takes ports before, during and after starts, and after servers were killed.

What must hold: the attacker receives no key that is in use and no text, and none of its vectors is
accepted; nearly every start gives a working server; every job ends with right vectors or an
``EmberdError``. The default numbers of rounds are small; ``SQUATTERS_STARTS=200
SQUATTERS_KILLS=50`` runs more. ``SQUATTERS_SOURCE`` selects the source tree of another version.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Final

import pytest

import waiting
from squatters.field import (
    ROUND_S,
    Field,
    interpreter,
    needs_two_users,
    opened,
    output_of,
    run_under_attack,
)

STARTS: Final = int(os.environ.get("SQUATTERS_STARTS", "6"))
KILLS: Final = int(os.environ.get("SQUATTERS_KILLS", "3"))

pytestmark = [
    *needs_two_users,
    pytest.mark.serial,  # the attacker takes the ports of any server that starts
    pytest.mark.timeout(120 + ROUND_S * max(STARTS, KILLS)),
]


@pytest.fixture
def field() -> Iterator[Field]:
    """Two unprivileged users."""
    with opened(interpreter()) as made:
        yield made


@pytest.mark.parametrize(
    "model",
    [
        pytest.param("emberd/demo", id="inherits-its-socket"),
        pytest.param("stub/hidden", id="opens-its-port-itself"),
    ],
)
def test_starts_under_attack_work_and_leak_nothing(field: Field, model: str) -> None:
    seen = run_under_attack(field, "starts", STARTS, model)
    assert (seen["leaked_keys"], seen["leaked_texts"]) == (0, 0)
    assert set(seen["outcomes"]) <= {"right", "error"}
    assert seen["outcomes"].get("right", 0) >= 0.99 * STARTS - (STARTS < 100)


def test_publicly_readable_port_costs_retries_but_leaks_nothing(
    field: Field,
) -> None:
    """The attacker takes it before the server listens, so the listener is not the server."""
    seen = run_under_attack(field, "starts", STARTS, "stub/shown?shows_port=1&start=0.3")
    assert (seen["leaked_keys"], seen["leaked_texts"], seen["requests"]) == (0, 0, 0)
    assert seen["of_the_victim"] > 0
    assert set(seen["outcomes"]) <= {"right", "error"}


@pytest.mark.parametrize("model", ["emberd/demo", "stub/hidden"])
def test_jobs_whose_server_is_killed_end_correctly_and_leak_nothing(
    field: Field, model: str
) -> None:
    seen = run_under_attack(field, "kills", KILLS, model)
    assert (seen["leaked_keys"], seen["leaked_texts"]) == (0, 0)
    assert set(seen["outcomes"]) <= {"right", "error"}


@pytest.mark.parametrize("kind", ["found", "listed", "given"])
def test_external_server_is_not_used_after_another_user_takes_its_port(
    field: Field, kind: str
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = field.server(port, "" if kind == "found" else "the-users-key")
    attacker = None
    try:
        waiting.until(lambda: _listens(port), 30)
        listed = url if kind == "listed" else ""
        victim = field.victim(kind, 1, "emberd/demo", url, discover=listed)
        waiting.until(lambda: field.rounds or victim.poll() is not None, 60)
        assert field.rounds, output_of(victim, 1)
        attacker = field.attacker()
        server.kill()
        server.communicate()
        waiting.until(lambda: _taken(field, port), 30)
        assert victim.stdin is not None
        victim.stdin.write("\n")
        victim.stdin.flush()
        output = output_of(victim, ROUND_S)
    finally:
        for process in filter(None, (server, attacker)):
            process.kill()
            process.communicate()
    first, second = field.rounds or pytest.fail(output)
    field.summary(kind)
    assert (first["outcome"], first["origin"]) == ("right", "given" if kind == "given" else "found")
    # A found server is replaced by a managed one; the user must restart a given one.
    assert second["outcome"].split(":")[0] == ("error" if kind == "given" else "right")
    assert field.received == []


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _taken(field: Field, port: int) -> bool:
    return any(line["event"] == "took" and line["port"] == port for line in field.log)

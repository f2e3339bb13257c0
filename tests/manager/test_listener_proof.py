"""The proof that the listening socket on a port belongs to the server that was started."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from emberd.manager import health
from emberd.system import listeners
from emberd.system.log_rules import Diagnosis


@dataclass
class Server:
    """A server as its supervisor sees it."""

    seen: list[int]
    pid: int = os.getppid()

    def members(self) -> list[int]:
        return self.seen

    def reap(self) -> int | None:
        return None


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A port at which this process listens."""
    monkeypatch.setattr(health, "_UNSEEN_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as opened:
        yield opened.getsockname()[1]


def prove(port: int, seen: list[int]) -> tuple[health.StartMonitor, Diagnosis | None]:
    server: Any = Server(seen)
    unused: Any = None
    start = health.StartMonitor(server, unused, port, 0.0, unused)
    return start, start._prove_listener()


def test_socket_that_a_descendant_holds_is_the_servers(port: int) -> None:
    start, diagnosis = prove(port, [os.getppid(), os.getpid()])
    assert diagnosis is None
    assert start._listener == listeners.find(f"http://127.0.0.1:{port}")
    assert start._listener is not None


def test_socket_that_no_descendant_holds_was_taken(port: int) -> None:
    _, diagnosis = prove(port, [os.getppid()])
    assert diagnosis is not None
    assert diagnosis.port_taken


def test_descendants_that_are_not_seen_do_not_mean_that_the_port_was_taken(port: int) -> None:
    _, diagnosis = prove(port, [])
    assert diagnosis is not None
    assert not diagnosis.port_taken


def test_unreadable_descriptors_do_not_mean_that_the_port_was_taken(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> set[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(listeners, "_descriptors", refuse)
    start, diagnosis = prove(port, [os.getppid()])
    assert diagnosis is not None
    assert not diagnosis.port_taken
    assert start._listener is None


def test_descendants_that_are_not_seen_for_a_moment_fail_no_start(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_UNSEEN_S", 60.0)
    start, diagnosis = prove(port, [])
    assert (diagnosis, start._listener) == (None, None)

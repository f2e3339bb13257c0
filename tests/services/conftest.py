"""Servers of the test's own, one of each kind a module."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from emberd.cache import remote
from services.running import Service

Start = Callable[..., Service]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a server of the test's own; all are gone at the end."""
    running: list[Service] = []

    def started(scheme: str, *options: str) -> Service:
        running.append(Service(scheme, tmp_path, *options))
        return running[-1]

    yield started
    for service in running:
        service.kill()


@pytest.fixture(params=["redis", "memcached"])
def service(request: pytest.FixtureRequest, start: Start) -> Service:
    """A server of each kind."""
    return start(request.param)


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a server that failed be tried again at once."""
    monkeypatch.setattr("emberd.cache.cache.RETRY_AFTER_S", 0.0)


@pytest.fixture(autouse=True)
def _warnings(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "emberd")
    assert remote.TIMEOUT_S <= 2

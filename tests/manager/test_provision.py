"""A start installs an engine only if the user enabled that, and only once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emberd import installs
from emberd.errors import DownloadNeededError, InstallError, NoEngineError
from emberd.manager import Progress
from emberd.settings import ServerSpec
from emberd.verified_manager import Manager
from homes import QUICK
from stubs.engine import ENGINE, StubEngine


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stub engine as one whose environment is missing until it is installed."""
    asked: list[str] = []

    def install(name: str, places: object, on_progress: Any) -> None:
        asked.append(name)
        on_progress("installing the stub")

    monkeypatch.setattr(installs, "install", install)
    monkeypatch.setattr(
        StubEngine, "why_unavailable", lambda self, spec: None if asked else "not installed"
    )
    monkeypatch.setattr(StubEngine, "installable_environment", lambda self, spec: "stub")
    return asked


def test_nothing_is_installed_unasked(
    manager: Manager, stub: Any, not_installed: list[str]
) -> None:
    with pytest.raises(NoEngineError, match="not installed"):
        manager.ensure(stub())
    assert not_installed == []


def test_a_start_installs_what_it_needs_when_the_environment_says_so(
    home: Path, stub: Any, not_installed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBERD_AUTO_INSTALL", "1")
    manager = Manager(home, timing=QUICK)
    told: list[Progress] = []
    try:
        assert manager.ensure(stub(), on_progress=told.append).started
    finally:
        manager.stop()
    assert not_installed == ["stub"]
    assert told[0].text == "installing the stub"


def test_what_a_start_lacks_is_obtained_once_and_outside_of_the_lock(
    manager: Manager, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    told: list[Progress] = []

    def obtain(report: Callable[[str], None]) -> None:
        # Another caller is not held up, and what it starts is used.
        assert Manager(manager._home.root, timing=QUICK).ensure(stub()).started
        report("downloading")
        calls.append("obtain")

    def missing(spec: ServerSpec) -> Callable[[Callable[[str], None]], None]:
        assert spec == stub()
        calls.append("missing")
        return obtain

    server = manager.ensure(stub(), missing=missing, on_progress=told.append)
    assert not server.started
    assert told[0].text == "downloading"
    assert calls == ["missing", "obtain"]
    manager.ensure(stub(), missing=missing)
    assert calls == ["missing", "obtain"], "a running server lacks nothing"


def test_what_cannot_be_obtained_is_the_error_that_the_caller_gets(
    manager: Manager, stub: Any
) -> None:
    def obtain(_: Callable[[str], None]) -> None:
        raise DownloadNeededError("nobody agreed")

    with pytest.raises(DownloadNeededError):
        manager.ensure(stub(), missing=lambda _: obtain)
    assert manager.status() == []


def test_an_engine_that_is_there_is_not_installed_again(
    home: Path, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBERD_AUTO_INSTALL", "1")
    monkeypatch.setattr(installs, "install", lambda *_: pytest.fail("it was installed"))
    assert ENGINE.why_unavailable(stub()) is None
    manager = Manager(home, timing=QUICK)
    try:
        assert manager.ensure(stub()).started
    finally:
        manager.stop()


def test_a_failed_installation_is_the_error_that_the_caller_gets(
    home: Path, stub: Any, not_installed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise InstallError("the disk is full")

    monkeypatch.setenv("EMBERD_AUTO_INSTALL", "1")
    monkeypatch.setattr(installs, "install", fail)
    with pytest.raises(InstallError, match="the disk is full"):
        Manager(home, timing=QUICK).ensure(stub())


def test_an_engine_that_is_still_missing_once_installed_is_an_error(
    home: Path, stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setenv("EMBERD_AUTO_INSTALL", "1")
    monkeypatch.setattr(installs, "install", lambda name, *_: asked.append(name))
    monkeypatch.setattr(StubEngine, "why_unavailable", lambda self, spec: "not installed")
    monkeypatch.setattr(StubEngine, "installable_environment", lambda self, spec: "stub")
    manager = Manager(home, timing=QUICK)
    with pytest.raises(NoEngineError, match="not installed"):
        manager.ensure(stub())
    assert asked == ["stub"]

"""A start installs an engine only if the user enabled that, and only once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emberd import installs
from emberd.errors import InstallError, NoEngineError
from emberd.manager import Progress
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

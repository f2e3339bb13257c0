"""``emberd engine``: what it writes, and its exit codes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

import tiny_engine
import tiny_wheels
from command import Command
from emberd.cli import app
from emberd.installs import recipes

pytestmark = pytest.mark.usefixtures("engines")


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty EMBERD_ENGINES, the tiny engine as the only one, and its wheel."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    tiny_wheels.wheel(wheels, "tinydist", tiny_engine.VERSION)
    engines = tmp_path / "engines"
    for name, text in {
        "EMBERD_ENGINES": str(engines),
        "PATH": tiny_engine.path_with_uv(tmp_path / "bin", tiny_engine.QUICK_UV),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_FIND_LINKS": str(wheels),
        "PIP_NO_INDEX": "1",
    }.items():
        monkeypatch.setenv(name, text)
    monkeypatch.setattr(recipes, "RECIPES", {"tiny": tiny_engine.recipe()})
    return engines


def state(capsys: pytest.CaptureFixture[str]) -> list[tuple[str, str]]:
    import json

    capsys.readouterr()
    assert app.run(["engine", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["engines"]
    return [(row["version"], row["state"]) for row in rows]


def test_an_engine_is_installed_listed_and_removed(
    engines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["engine", "list"]) == 0
    shown = capsys.readouterr()
    assert "not installed" in shown.out
    assert shown.err == "To install one: emberd engine install tiny\n"

    assert app.run(["engine", "install", "tiny"]) == 0
    shown = capsys.readouterr()
    first, place, following = shown.out.splitlines()
    assert first.startswith("Installed tiny 1.5: 0 MB in ")
    assert place == f"Folder: {engines / 'tiny-1.5'}"
    assert following == "Next: emberd up --engine tiny"

    assert app.run(["engine", "install", "tiny"]) == 0
    assert "is already installed (0 MB)." in capsys.readouterr().out
    assert state(capsys) == [("1.5", "installed")]
    assert app.run(["engine", "list"]) == 0
    assert str(engines / "tiny-1.5" / "bin" / "python") in capsys.readouterr().out

    assert app.run(["engine", "remove", "tiny"]) == 0
    assert capsys.readouterr().out == "Removed tiny 1.5 (0 MB).\n"
    assert app.run(["engine", "remove", "tiny"]) == 0
    assert capsys.readouterr().out == "tiny is not installed.\n"


def test_the_list_tells_what_is_half_made_broken_old_or_elsewhere(
    engines: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (engines / "tiny-1.5").mkdir(parents=True)
    assert state(capsys) == [("1.5", "unfinished")]
    assert app.run(["engine", "remove", "tiny"]) == 0
    assert "the remains of an interrupted installation of tiny" in capsys.readouterr().out

    own = tiny_engine.make(engines)
    monkeypatch.setattr(recipes, "RECIPES", {"tiny": replace(tiny_engine.recipe(), version="2.0")})
    monkeypatch.setenv("COLUMNS", "300")
    assert app.run(["engine", "list"]) == 0
    assert "this version of emberd installs 2.0" in capsys.readouterr().out
    monkeypatch.setenv("EMBERD_TINY_PYTHON", own.python)
    assert state(capsys) == [("1.5", "installed")]
    monkeypatch.setenv("EMBERD_TINY_PYTHON", str(tmp_path / "no"))
    assert state(capsys) == [("1.5", "installed"), ("", "unusable")]
    monkeypatch.delenv("EMBERD_TINY_PYTHON")
    Path(own.python).unlink()
    assert state(capsys) == [("1.5", "broken")]


def test_a_failed_installation_quotes_the_installer_as_it_is_and_exits_with_one(
    engines: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing = '#!/bin/sh\necho "model=x: No space left on device"\nexit 2\n'
    monkeypatch.setenv("PATH", tiny_engine.path_with_uv(tmp_path / "failing", failing))
    assert app.run(["engine", "install", "tiny", "--json"]) == 1
    shown = capsys.readouterr()
    assert '"kind": "InstallError"' in shown.out
    assert "error: tiny 1.5 could not be installed: the disk is full. " in shown.err
    assert "model=x: No space left" in shown.err
    assert f"Log: {engines / 'tiny-1.5.log'}" in shown.err


def test_a_name_that_is_no_engine_is_wrong_usage(home: Path) -> None:
    outcome = Command(home)("engine", "install", "nothing")
    assert outcome.code == 2
    assert "one of sglang, transformers" in outcome.err


@pytest.mark.parametrize("verb", [(), ("install",), ("install", "--help")])
def test_it_says_what_it_wants(home: Path, verb: tuple[str, ...]) -> None:
    outcome = Command(home)("engine", *verb)
    if "--help" in verb:
        assert (outcome.code, outcome.err) == (0, "")
        assert "One of: sglang, transformers." in outcome.out
    else:
        assert outcome.code == 2
        assert "Try: emberd engine" in outcome.err

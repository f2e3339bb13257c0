"""Environments of engines: complete, incomplete, broken, old, or of another user."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import examined
import tiny_engine
from emberd.doctor import engines
from emberd.doctor.findings import Finding, Level
from emberd.installs import recipes


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of environments, where the tiny engine is the only one."""
    known = {"tiny": tiny_engine.recipe()}
    monkeypatch.setattr(recipes, "RECIPES", known)
    monkeypatch.setenv("PATH", os.defpath)
    return tmp_path / "home" / "engines"


def look(folder: Path, **more: Any) -> list[Finding]:
    return list(engines.check_installs(examined.wanted(folder.parent, **more)))


def test_what_is_not_installed_is_said_so(folder: Path) -> None:
    assert examined.told(look(folder)) == [(Level.OK, "not installed", "")]


def test_a_whole_environment_is_good(folder: Path) -> None:
    tiny_engine.make(folder)
    [found] = look(folder)
    assert (found.level, found.fact) == (Level.OK, f"1.5 in {folder / 'tiny-1.5'} (1 MB)")


def test_what_an_interrupted_installation_left_is_noted(folder: Path) -> None:
    (folder / "tiny-1.5").mkdir(parents=True)
    first, *_ = look(folder)
    assert (first.level, first.advice) == (Level.NOTE, "emberd engine install tiny")


def test_an_environment_whose_python_is_gone_is_noted(folder: Path) -> None:
    made = tiny_engine.make(folder)
    os.unlink(made.python)
    first, *_ = look(folder)
    assert first.fact == f"the Python interpreter of {made.folder} cannot be run"
    assert first.advice == "emberd engine remove tiny && emberd engine install tiny"


def test_another_version_than_the_tried_one_is_noted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_engine.make(folder)
    newer = {"tiny": tiny_engine.recipe(version="2.0")}
    monkeypatch.setattr(recipes, "RECIPES", newer)
    assert look(folder)[0].fact.endswith("this version of emberd installs 2.0")


def test_an_interpreter_that_is_named_is_shown_with_the_reason(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tiny_engine.make(folder.with_name("elsewhere")).python
    monkeypatch.setenv("EMBERD_TINY_PYTHON", python)
    [found] = look(folder)
    assert found.fact == f"1.5 by {python} (set by EMBERD_TINY_PYTHON)"


def test_an_interpreter_that_is_none_is_noted_with_what_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBERD_TINY_PYTHON", "/nowhere")
    [found] = look(folder)
    assert found.level is Level.NOTE
    assert "tinydist" in found.advice


def test_a_folder_that_anybody_may_write_to_is_noted(folder: Path) -> None:
    tiny_engine.make(folder)
    folder.chmod(0o777)
    [found] = look(folder)
    assert "can be written by everyone" in found.fact

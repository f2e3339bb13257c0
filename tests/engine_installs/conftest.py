"""Wheels of the tiny engine on the disk, and an index that contains only them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import leftovers
import tiny_engine
import tiny_wheels
from emberd.env import Places
from emberd.installs import recipes


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """The folder of all distributions that installers find."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    return folder


@pytest.fixture
def index(
    tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, str]]:
    """The environment in which installers find only ``wheels``, and uv is a quick stub."""
    variables = {
        "PATH": tiny_engine.path_with_uv(tmp_path / "bin", tiny_engine.QUICK_UV),
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_NO_CACHE_DIR": "1",
        "PIP_NO_INDEX": "1",
        "SIGNS": str(tmp_path),
    }
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    yield variables
    assert leftovers.end_all([str(tmp_path)]) == []


@pytest.fixture
def no_uv(index: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without uv: environments get a pip of their own, which takes seconds."""
    index["PATH"] = tiny_engine.SYSTEM_PATH
    monkeypatch.setenv("PATH", index["PATH"])


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> recipes.Recipe:
    """The recipe of the tiny engine, which is the only one that there is."""
    recipe = tiny_engine.recipe()
    monkeypatch.setattr(recipes, "RECIPES", {"tiny": recipe})
    return recipe


@pytest.fixture
def places(tmp_path: Path, tiny: recipes.Recipe, wheels: Path) -> Places:
    """An empty folder of environments, and a wheel that can be installed there."""
    tiny_wheels.wheel(wheels, "tinydist", tiny_engine.VERSION)
    return tiny_engine.places(tmp_path / "engines")

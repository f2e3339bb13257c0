"""The extras hold what the recipes hold."""

from __future__ import annotations

import tomllib

import pytest

from emberd.installs import RECIPES
from source_tree import ROOT


@pytest.mark.parametrize("name", RECIPES)
def test_an_extra_has_the_pins_of_the_engines_own_environment(name: str) -> None:
    text = (ROOT / "backend" / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    extra = {line.partition(";")[0].strip() for line in project["optional-dependencies"][name]}
    wanted = set(RECIPES[name].requirements)
    assert extra <= wanted
    assert wanted - extra <= set(project["dependencies"])
    assert f"{RECIPES[name].distribution}=={RECIPES[name].version}" in extra

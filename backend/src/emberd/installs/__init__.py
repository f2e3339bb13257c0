"""Engines in environments of their own: installed, listed, removed, and found elsewhere.

An application's environment is not the place for one: SGLang's pins cannot be met beside a current
LangChain application.
"""

from __future__ import annotations

from emberd.installs.environments import Installed, Site, holder, installed, sites
from emberd.installs.installer import install, remove
from emberd.installs.interpreters import Interpreter, locate
from emberd.installs.recipes import RECIPES, Recipe, in_words

__all__ = [
    "RECIPES",
    "Installed",
    "Interpreter",
    "Recipe",
    "Site",
    "holder",
    "in_words",
    "install",
    "installed",
    "locate",
    "remove",
    "sites",
]

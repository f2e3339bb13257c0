"""Engines in environments of their own: installed, listed, removed, and found elsewhere.

An application's environment is not the place for one: SGLang's pins cannot be met beside a current
LangChain application.
"""

from __future__ import annotations

from emberd.installs.environments import Installed, Site, installed, sites
from emberd.installs.installing import install
from emberd.installs.interpreters import Interpreter, locate
from emberd.installs.locks import holder
from emberd.installs.recipes import RECIPES, Recipe
from emberd.installs.removing import remove
from emberd.installs.sizes import in_words

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

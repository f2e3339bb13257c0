"""Engines in separate environments: installed, listed, removed, and found elsewhere.

They cannot be installed into an application's environment: SGLang's pins conflict with those of a
current LangChain application.
"""

from __future__ import annotations

from emberd.installs.environments import Installed, Site, installed, lock_holder, site, sites
from emberd.installs.installer import install, remove
from emberd.installs.interpreters import Interpreter, locate, planned
from emberd.installs.recipes import RECIPES, Recipe

__all__ = [
    "RECIPES",
    "Installed",
    "Interpreter",
    "Recipe",
    "Site",
    "install",
    "installed",
    "locate",
    "lock_holder",
    "planned",
    "remove",
    "site",
    "sites",
]

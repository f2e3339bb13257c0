"""The interpreter that has an engine: one that is named, ours, the running one, or the PATH's."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from emberd import env
from emberd.env import Places
from emberd.errors import SettingError
from emberd.installs import environments, probe
from emberd.installs.recipes import Recipe, recipe_of

_SHEBANG_BYTES: Final = 4096
# A path that is too long for a shebang stands in a line of its own that the shell runs.
_INTERPRETER: Final = re.compile(
    rb"\A#!\s*(/\S+)(?:[ \t]+(\S+))?|^'''exec' \"?'?([^\"'\n]+)", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Interpreter:
    """An interpreter that has an engine.

    Attributes:
        python: Its path.
        version: The version of the engine's distribution that it has; not always the pinned one.
        packages: The folder that holds the distribution.
        why: Where it was found, for people.
    """

    python: str
    version: str
    packages: str
    why: str


def locate(name: str, places: Places | None = None) -> Interpreter | None:
    """Return the interpreter that is to run an engine; None when there is none.

    The first of: what ``EMBERD_SGLANG_PYTHON`` (or ``EMBERD_TRANSFORMERS_PYTHON``) names, the
    environment that emberd made, the running interpreter, the one behind the engine's program on
    the PATH. Of these, all but emberd's own may have another version than the pinned one.

    Raises:
        SettingError: No such engine; or the variable names no interpreter that has it.
        StateFolderError: Anybody may write to emberd's folder of environments.
    """
    recipe = recipe_of(name)
    return (
        _named(recipe)
        or _own(recipe, places or Places.resolve())
        or _running(recipe)
        or _on_path(recipe)
    )


def _named(recipe: Recipe) -> Interpreter | None:
    given = env.text(recipe.variable)
    if not given:
        return None
    path = Path(os.path.abspath(os.path.expanduser(given)))
    python = str(path / "bin" / "python" if path.is_dir() else path)
    if not (os.path.isfile(python) and os.access(python, os.X_OK)):
        raise SettingError(
            f"{recipe.variable}={given!r}: there is no program {python}. Name the python of an "
            f"environment that holds {recipe.distribution}, or the environment's folder."
        )
    try:
        found = probe.ask_once(python, recipe.distribution)
    except OSError as error:
        raise SettingError(
            f"{recipe.variable}={given!r}: {python} cannot be asked what it holds ({error})."
        ) from error
    if found is None:
        raise SettingError(
            f"{recipe.variable}={given!r}: {python} has no {recipe.distribution}. Install it "
            f"there, or unset the variable and run: emberd engine install {recipe.name}"
        )
    return Interpreter(python, found.version, found.packages, f"{recipe.variable} names it")


def _own(recipe: Recipe, places: Places) -> Interpreter | None:
    for own in environments.installed(places):
        if own.name == recipe.name and own.is_usable:
            why = f"`emberd engine install {recipe.name}` made it"
            return Interpreter(own.python, own.version, own.packages, why)
    return None


def _running(recipe: Recipe) -> Interpreter | None:
    if not sys.executable:
        return None  # Python is embedded in another program
    try:
        found = importlib.metadata.distribution(recipe.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    packages = str(found.locate_file(""))
    return Interpreter(sys.executable, found.version, packages, "it runs this program")


def _on_path(recipe: Recipe) -> Interpreter | None:
    script = shutil.which(recipe.script) if recipe.script else None
    python = _interpreter_of(script) if script else None
    if python is None:
        return None
    try:
        found = probe.ask_once(python, recipe.distribution)
    except OSError:
        return None
    if found is None:
        return None
    return Interpreter(python, found.version, found.packages, f"{script} on the PATH uses it")


def _interpreter_of(script: str) -> str | None:
    try:
        with open(script, "rb") as file:
            head = file.read(_SHEBANG_BYTES)
    except OSError:
        return None
    paths = [_resolved(match) for match in _INTERPRETER.finditer(head)]
    pythons = [path for path in paths if path and Path(path).name.startswith("python")]
    return pythons[0] if pythons else None


def _resolved(match: re.Match[bytes]) -> str | None:
    program, argument, long_path = (os.fsdecode(part or b"") for part in match.groups())
    if long_path:
        return long_path.strip()
    if program and Path(program).name == "env":
        return shutil.which(argument) if argument else None
    return program or None

"""The interpreter that runs an engine, and what other interpreters contain."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from emberd import env
from emberd.env import Places
from emberd.errors import InstallError, SettingError
from emberd.installs import environments
from emberd.installs.recipes import Recipe, dotted, recipe_of
from emberd.system import process_env

# A path that is too long for a shebang is in a separate line that the shell runs.
_INTERPRETER: Final = re.compile(
    rb"\A#!\s*(/\S+)(?:[ \t]+(\S+))?|^'''exec' \"?'?([^\"'\n]+)", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Interpreter:
    """An interpreter that has an engine.

    Attributes:
        python: Its path.
        version: The version of the engine's distribution, not always the pinned one.
        packages: The folder that contains the distribution.
        why: Where it was found, for display.
    """

    python: str
    version: str
    packages: str
    why: str


def locate(name: str, places: Places | None = None) -> Interpreter | None:
    """Return the interpreter that runs an engine; None if there is none.

    The first of: the one in ``EMBERD_SGLANG_PYTHON`` (or ``EMBERD_TRANSFORMERS_PYTHON``), the
    environment that emberd installed, the running interpreter, the one behind the engine's program
    on the PATH. All except emberd's own may have another version than the pinned one.

    Raises:
        SettingError: The engine is unknown, or the variable names no interpreter that has it.
        StateFolderError: Other users can write to its environment, or to the folder of all.
    """
    recipe = recipe_of(name)
    return (
        _from_variable(recipe)
        or _installed(recipe, places or Places.resolve())
        or _running(recipe)
        or _on_path(recipe)
    )


def planned(name: str, places: Places) -> Interpreter:
    """Return the interpreter that an engine would have if it were installed.

    Raises:
        SettingError: The engine is unknown.
    """
    recipe = recipe_of(name)
    place = environments.site(recipe, places)
    why = f"`emberd engine install {recipe.name}` would make it"
    return Interpreter(str(place.python), recipe.version, str(place.folder), why)


def _from_variable(recipe: Recipe) -> Interpreter | None:
    given = env.text(recipe.variable)
    if not given:
        return None
    path = Path(os.path.abspath(os.path.expanduser(given)))
    python = str(path / "bin" / "python" if os.path.isdir(path) else path)
    setting = f"{recipe.variable}={given!r}"
    if not (os.path.isfile(python) and os.access(python, os.X_OK)):
        raise SettingError(
            f"{setting}: there is no program {python}. Use the python of an environment that "
            f"contains {recipe.distribution}, or the environment's folder."
        )
    try:
        found = query_cached(python, recipe.distribution)
    except OSError as error:
        raise SettingError(f"{setting}: {python} cannot be queried ({error}).") from error
    if found is None:
        raise SettingError(
            f"{setting}: {python} has no {recipe.distribution}. Install it there, or unset the "
            f"variable and run: emberd engine install {recipe.name}"
        )
    return Interpreter(python, found.version, found.packages, f"set by {recipe.variable}")


def _installed(recipe: Recipe, places: Places) -> Interpreter | None:
    for own in environments.installed(places, recipe.name):
        if own.is_usable:
            why = f"installed by `emberd engine install {recipe.name}`"
            return Interpreter(own.python, own.version, own.packages, why)
    return None


def _running(recipe: Recipe) -> Interpreter | None:
    if not (python := process_env.interpreter()):
        return None  # Python is embedded in another program
    try:
        found = importlib.metadata.distribution(recipe.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
    packages = str(found.locate_file(""))
    return Interpreter(python, found.version, packages, "it runs this program")


def _on_path(recipe: Recipe) -> Interpreter | None:
    script = shutil.which(recipe.script) if recipe.script else None
    if script and (python := _interpreter_of(script)):
        with suppress(OSError):
            if found := query_cached(python, recipe.distribution):
                why = f"used by {script} on the PATH"
                return Interpreter(python, found.version, found.packages, why)
    return None


def _interpreter_of(script: str) -> str | None:
    try:
        with open(script, "rb") as file:
            head = file.read(4096)
    except OSError:
        return None
    for match in _INTERPRETER.finditer(head):
        program, argument, long_path = (os.fsdecode(part or b"") for part in match.groups())
        python: str | None = long_path.strip() or program
        if not long_path and Path(program).name == "env":
            python = shutil.which(argument) if argument else None
        if python and Path(python).name.startswith("python"):
            return python
    return None


# ------------------------------------------------------------ what another interpreter contains

_TIMEOUT_S: Final = 20.0

# Metadata and specs are read from the disk: importing torch would take seconds.
_SCRIPT: Final = """
import importlib.metadata, importlib.util, json, sys
try:
    found = importlib.metadata.distribution(sys.argv[1])
except importlib.metadata.PackageNotFoundError:
    answer = None
else:
    answer = {
        "version": found.version,
        "packages": str(found.locate_file("")),
        "missing": [name for name in sys.argv[2:] if importlib.util.find_spec(name) is None],
    }
print(json.dumps(answer))
"""


@dataclass(frozen=True, slots=True)
class Distribution:
    """A distribution that an interpreter has.

    Attributes:
        version: Its version.
        packages: The folder that contains it.
        missing: Of the modules in the query, those that cannot be found.
    """

    version: str
    packages: str
    missing: Sequence[str] = ()


def query(python: str, distribution: str, modules: Sequence[str] = ()) -> Distribution | None:
    """Return what ``python`` has of a distribution; None if it has none.

    Raises:
        OSError: It cannot be run, or is not Python; the message says how it failed.
    """
    output = _run(python, _SCRIPT, distribution, *modules)
    try:
        answer = json.loads(output)
        return None if answer is None else Distribution(**answer)
    except (ValueError, TypeError) as error:
        raise OSError("it is not Python") from error


def _run(python: str, script: str, *arguments: str) -> str:
    """Return the output of one of our scripts; raises ``OSError`` if it fails."""
    try:
        done = subprocess.run(  # noqa: S603 - the interpreter is the user's, or ours
            [python, "-I", "-c", script, *arguments],
            capture_output=True,
            check=True,
            env=process_env.for_interpreter(),
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=_TIMEOUT_S,
        )
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
        raise OSError(last) from error
    except subprocess.TimeoutExpired as error:
        raise OSError(f"no answer in {_TIMEOUT_S:g} s") from error
    except ValueError as error:  # the output is not text
        raise OSError("it is not Python") from error
    return done.stdout


_cache: Final[dict[tuple[str, str], tuple[tuple[int, ...], Distribution]]] = {}


def query_cached(python: str, distribution: str) -> Distribution | None:
    """Return what ``query`` returns, from memory if the packages are unchanged.

    Raises:
        OSError: It cannot be run, or is not Python.
    """
    known = _cache.get((python, distribution))
    if known is not None and known[0] == _changed_ns(python, known[1]):
        return known[1]
    found = query(python, distribution)
    if found is not None:
        _cache[python, distribution] = (_changed_ns(python, found), found)
    return found


def _changed_ns(python: str, found: Distribution) -> tuple[int, ...]:
    # Installing or removing a distribution changes the folder that contains it.
    times = []
    for path in (python, found.packages):
        try:
            times.append(os.stat(path).st_mtime_ns)
        except OSError:
            times.append(0)
    return tuple(times)


# ------------------------------------------------------------ the one to make an environment from

_PRINT_VERSION: Final = "import sys, venv; print('%d.%d' % sys.version_info[:2])"


def find_python(recipe: Recipe) -> str:
    """Return an interpreter that the recipe has wheels for: the running one if possible.

    Raises:
        InstallError: There is none on the PATH either.
    """
    running = sys.version_info[:2]
    is_usable = sys.implementation.name == "cpython" and running in recipe.pythons
    if is_usable and (own := process_env.interpreter()):
        return own
    for version in map(dotted, recipe.pythons):
        if python := shutil.which(f"python{version}"):
            # It must be run: pyenv leaves programs for missing versions, and Debian leaves out
            # venv.
            with suppress(OSError):
                if _run(python, _PRINT_VERSION).strip() == version:
                    return python
    wanted = ", ".join(map(dotted, sorted(recipe.pythons)))
    raise InstallError(
        f"{recipe} has wheels for CPython {wanted}, but this is {dotted(running)}, and none of "
        f"those versions is on the PATH",
        advice=f"Install one, for example: uv python install {dotted(recipe.pythons[0])}",
    )

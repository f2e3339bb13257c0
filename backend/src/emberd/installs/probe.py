"""What another interpreter holds: asked of itself, without importing any of it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from emberd.installs import surroundings

_TIMEOUT_S: Final = 20.0

# Metadata and specs are read from the disk: importing torch would take seconds.
_QUESTION: Final = """
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
class Holding:
    """A distribution that an interpreter holds.

    Attributes:
        version: Its version.
        packages: The folder that holds it.
        missing: Of the modules that were asked about, those that cannot be found.
    """

    version: str
    packages: str
    missing: tuple[str, ...] = ()


def ask(python: str, distribution: str, modules: Sequence[str] = ()) -> Holding | None:
    """Return what ``python`` holds of a distribution; None when it holds none.

    Raises:
        OSError: It cannot be run, or is no Python; the text says how it failed.
    """
    answer = _answer(python, distribution, modules)
    if answer is None:
        return None
    return Holding(answer["version"], answer["packages"], tuple(answer["missing"]))


def ask_once(python: str, distribution: str) -> Holding | None:
    """Return what ``ask`` returns, from memory while the packages are as they were.

    Raises:
        OSError: It cannot be run, or is no Python.
    """
    known = _known.get((python, distribution))
    if known is not None and known[0] == _stamp(python, known[1]):
        return known[1]
    found = ask(python, distribution)
    if found is not None:
        _known[python, distribution] = (_stamp(python, found), found)
    return found


_Stamp = tuple[int, int]
_known: Final[dict[tuple[str, str], tuple[_Stamp, Holding]]] = {}


def _stamp(python: str, holding: Holding) -> _Stamp:
    # Installing or removing a distribution changes the folder that holds it.
    return _changed_ns(python), _changed_ns(holding.packages)


def _changed_ns(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _answer(python: str, distribution: str, modules: Sequence[str]) -> Any:
    command = [python, "-I", "-c", _QUESTION, distribution, *modules]
    try:
        done = subprocess.run(  # noqa: S603 - the interpreter is the user's, or ours
            command,
            capture_output=True,
            check=True,
            env=surroundings.clean(),
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=_TIMEOUT_S,
        )
        return json.loads(done.stdout)
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
        raise OSError(last) from error
    except subprocess.TimeoutExpired as error:
        raise OSError(f"no answer in {_TIMEOUT_S:g} s") from error
    except ValueError as error:
        raise OSError("it is no Python") from error

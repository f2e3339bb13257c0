"""Whether a recipe has wheels for this machine, and which Python is to hold them."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

from emberd.errors import InstallError
from emberd.installs import surroundings
from emberd.installs.recipes import Recipe, Version

_TIMEOUT_S: Final = 20.0
_ELSEWHERE: Final = "use a server on another machine (EMBERD_BASE_URL=http://HOST:30000/v1)"
_VERSION: Final = "import sys, venv; print('%d.%d' % sys.version_info[:2])"


def check(recipe: Recipe) -> None:
    """Check that there are wheels for this machine.

    Raises:
        InstallError: There are none; says what it is and what is needed.
    """
    here = f"{platform.system()} {platform.machine()}"
    if here not in recipe.systems:
        raise InstallError(
            f"{recipe} has no wheels for {here}, only for {', '.join(recipe.systems)}",
            advice=f"There, {_ELSEWHERE}.",
        )
    if recipe.glibc is None or platform.system() != "Linux":
        return
    needed = ".".join(map(str, recipe.glibc))
    found = _glibc()
    if found is None or found < recipe.glibc:
        known = "no GNU libc" if found is None else f"glibc {'.'.join(map(str, found))}"
        raise InstallError(
            f"{recipe} needs glibc {needed} or newer, and this system has {known}",
            advice=f"Use a newer system (a container of one will do), or {_ELSEWHERE}.",
        )


def python_for(recipe: Recipe) -> str:
    """Return an interpreter that the recipe has wheels for: the running one where it will do.

    Raises:
        InstallError: There is none on the PATH either.
    """
    running = sys.version_info[:2]
    if sys.implementation.name == "cpython" and sys.executable and running in recipe.pythons:
        return sys.executable
    for python in _candidates(recipe):
        return python
    wanted = ", ".join(f"{major}.{minor}" for major, minor in sorted(recipe.pythons))
    raise InstallError(
        f"{recipe} has wheels for CPython {wanted}, this is {'.'.join(map(str, running))}, and "
        f"none of those is on the PATH",
        advice=f"Install one, for example: uv python install {_dotted(recipe.pythons[0])}",
    )


def _candidates(recipe: Recipe) -> Iterator[str]:
    for version in recipe.pythons:
        python = shutil.which(f"python{_dotted(version)}")
        if python is not None and _version(python) == _dotted(version):
            yield python


def _version(python: str) -> str | None:
    # It is run: pyenv leaves programs of versions that are not there, and Debian leaves out venv.
    try:
        done = subprocess.run(  # noqa: S603 - it is the user's Python
            [python, "-I", "-c", _VERSION],
            capture_output=True,
            check=True,
            env=surroundings.clean(),
            text=True,
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _glibc() -> Version | None:
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (ValueError, OSError):
        return None  # musl knows no such name
    major, _, minor = version.partition(".")
    return (int(major), int(minor)) if name == "glibc" else None


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))

"""What an engine's environment holds: pinned, and measured once installed.

* Whether a recipe has wheels for this machine, and which Python is to hold them.

* How much room an environment takes, and whether there is as much.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from emberd.errors import InstallError, SettingError
from emberd.system import process_env

Version = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What an engine's environment holds, and where it can be made.

    Attributes:
        name: The engine.
        distribution: The distribution whose version is checked.
        version: The version that it must have.
        requirements: What the installer is given.
        bytes: Size on disk once installed, measured.
        download_bytes: Size of what is downloaded for it, measured.
        modules: What must be importable afterwards.
        script: The program that the distribution puts on the PATH; empty where there is none.
        pythons: The CPython versions that all of it has wheels for, the preferred one first.
        systems: System and machine, as ``platform`` names them, that it has wheels for.
        glibc: The oldest GNU libc that its wheels for Linux run on; None when any does.
    """

    name: str
    distribution: str
    version: str
    requirements: tuple[str, ...]
    bytes: int
    download_bytes: int = 0
    modules: tuple[str, ...] = ()
    script: str = ""
    pythons: tuple[Version, ...] = ((3, 13), (3, 12), (3, 11))
    systems: tuple[str, ...] = ("Linux x86_64", "Linux aarch64", "Darwin arm64")
    glibc: Version | None = None

    @property
    def variable(self) -> str:
        """The environment variable that names an interpreter to use instead."""
        return f"EMBERD_{self.name.upper()}_PYTHON"

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


# On macOS torch comes without CUDA's libraries; those two sizes are estimates.
_HAS_CUDA_WHEELS: Final = sys.platform != "darwin"

_SGLANG: Final = Recipe(
    name="sglang",
    distribution="sglang",
    version="0.5.23",
    requirements=("sglang==0.5.23",),
    bytes=11_000_000_000,
    download_bytes=4_800_000_000,
    modules=("sglang", "torch", "transformers"),
    script="sglang",
    systems=("Linux x86_64", "Linux aarch64"),
    glibc=(2, 34),
)
_TRANSFORMERS: Final = Recipe(
    name="transformers",
    distribution="transformers",
    version="5.19.0",
    requirements=(
        "transformers==5.19.0",
        "torch==2.14.1",
        "numpy>=1.26",
        "prometheus-client>=0.20",
        "starlette>=0.40",
        "uvicorn>=0.30",
    ),
    bytes=6_000_000_000 if _HAS_CUDA_WHEELS else 1_500_000_000,
    download_bytes=3_100_000_000 if _HAS_CUDA_WHEELS else 500_000_000,
    modules=("numpy", "prometheus_client", "safetensors", "starlette", "torch", "uvicorn"),
    pythons=((3, 13), (3, 12), (3, 11), (3, 14)),
    glibc=(2, 28),
)

RECIPES: Final[Mapping[str, Recipe]] = MappingProxyType(
    {recipe.name: recipe for recipe in (_SGLANG, _TRANSFORMERS)}
)
"""Name of an engine -> what its environment holds."""


def recipe_of(name: str) -> Recipe:
    """Return the recipe of an engine.

    Raises:
        SettingError: No engine of that name has an environment of its own.
    """
    try:
        return RECIPES[name]
    except KeyError:
        raise SettingError(
            f"No engine called {name!r} can be installed: give one of {', '.join(RECIPES)}. "
            f"(The demo comes with: pip install 'emberd[demo]'.)"
        ) from None


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
            env=process_env.clean(),
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


_SPARE: Final = 1.15
_BLOCK_BYTES: Final = 512
_GB: Final = 1_000_000_000
_MB: Final = 1_000_000
_LEAST_PAUSE_S: Final = 3.0
_SHARE: Final = 20  # of the time at most one part in so many goes into measuring


def check_room(recipe: Recipe, engines: Path) -> bool:
    """Check that the disk holds what is installed and, meanwhile, what is downloaded for it.

    Returns:
        Whether there is room to keep the downloads as well, in the installer's own cache: an
        installation that is repeated needs no network then.

    Raises:
        InstallError: There is no room; says what there is, what is needed, and where.
    """
    free = shutil.disk_usage(_existing(engines)).free
    needed = round(recipe.bytes * _SPARE) + recipe.download_bytes
    if free < needed:
        raise InstallError(
            f"{recipe} needs {in_words(needed)} on the disk of {engines} "
            f"({in_words(recipe.bytes)} installed, the rest meanwhile), and "
            f"{in_words(free)} are free",
            advice="Make room, or set EMBERD_ENGINES to a folder on another disk.",
        )
    return free >= needed + recipe.download_bytes


def in_words(size_bytes: int) -> str:
    """Return a size as people read it: ``10.5 GB``, ``340 MB``."""
    if size_bytes < _GB:
        return f"{size_bytes / _MB:.0f} MB"
    return f"{size_bytes / _GB:.1f} GB"


def used_bytes(folder: Path) -> int:
    """Return what ``folder`` takes on the disk; 0 where there is none."""
    total = 0
    folders = [os.fspath(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    total += entry.stat(follow_symlinks=False).st_blocks * _BLOCK_BYTES
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except OSError:
            continue  # it is being written, or removed: what was there a moment ago may be gone
    return total


class Meter:
    """The size of a folder that grows, measured only so often that it costs next to nothing.

    An environment has 100,000 files: looking at each takes about a second.
    """

    def __init__(self, folder: Path) -> None:
        """Measure ``folder``."""
        self._folder = folder
        self._bytes = 0
        self._next_s = 0.0

    def read(self) -> int:
        """Return the size in bytes when it was last measured, which was some seconds ago."""
        begun_s = time.monotonic()
        if begun_s >= self._next_s:
            self._bytes = used_bytes(self._folder)
            ended_s = time.monotonic()
            self._next_s = ended_s + max(_LEAST_PAUSE_S, _SHARE * (ended_s - begun_s))
        return self._bytes


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder

"""Recipes: what an engine's environment contains, where it can be made, and how large it is."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from emberd.errors import InstallError, SettingError
from emberd.system import disk_space
from emberd.system.disk_space import in_words

Version = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What an engine's environment contains, and where it can be made.

    Attributes:
        name: The engine.
        distribution: The distribution whose version is checked.
        version: The version that it must have.
        requirements: What the installer is given.
        bytes: Size on disk after the installation, measured.
        download_bytes: Size of the downloads, measured.
        modules: Modules that must be importable afterwards.
        script: The program that the distribution puts on the PATH; empty if there is none.
        pythons: The CPython versions that have wheels for all of it, the preferred one first.
        systems: System and machine, as ``platform`` names them, that have wheels.
        glibc: The oldest GNU libc that its wheels for Linux run on; None for any.
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
"""Name of an engine -> what its environment contains."""


def recipe_of(name: str) -> Recipe:
    """Return the recipe of an engine.

    Raises:
        SettingError: No engine of that name has its own environment.
    """
    try:
        return RECIPES[name]
    except KeyError:
        raise SettingError(
            f"The engine {name!r} cannot be installed: use one of {', '.join(RECIPES)}. "
            f"(Install the demo with: pip install 'emberd[demo]'.)"
        ) from None


# ------------------------------------------------------------ the platform

_ELSEWHERE: Final = "use a server on another machine (EMBERD_BASE_URL=http://HOST:30000/v1)"


def check_platform(recipe: Recipe) -> None:
    """Check that there are wheels for this machine.

    Raises:
        InstallError: There are none; says what the machine is and what is needed.
    """
    here = f"{platform.system()} {platform.machine()}"
    if here not in recipe.systems:
        raise InstallError(
            f"{recipe} has no wheels for {here}, only for {', '.join(recipe.systems)}",
            advice=f"On this machine, {_ELSEWHERE}.",
        )
    if recipe.glibc is None or platform.system() != "Linux":
        return
    name, found = platform.libc_ver()
    if name == "glibc" and tuple(map(int, found.split(".")[:2])) >= recipe.glibc:
        return
    known = f"glibc {found}" if name == "glibc" else "no GNU libc"
    raise InstallError(
        f"{recipe} needs glibc {dotted(recipe.glibc)} or newer, but this system has {known}",
        advice=f"Use a newer system (a container is enough), or {_ELSEWHERE}.",
    )


def dotted(version: Sequence[int]) -> str:
    """Return a version as text: ``3.13``."""
    return ".".join(map(str, version))


# ------------------------------------------------------------ the disk

_SPARE: Final = 1.15


def check_disk_space(recipe: Recipe, engines: Path) -> bool:
    """Check that the disk has space for the installation and its downloads.

    Returns:
        Whether the downloads also fit into the installer's own cache, so that a second
        installation needs no network.

    Raises:
        InstallError: There is too little; says what there is, what is needed, and where.
    """
    free = disk_space.free_bytes(engines)
    needed = round(recipe.bytes * _SPARE) + recipe.download_bytes
    if free < needed:
        raise InstallError(
            f"{recipe} needs {in_words(needed)} on the disk of {engines} "
            f"({in_words(recipe.bytes)} installed, the rest during the installation), but only "
            f"{in_words(free)} are free",
            advice="Free some space, or set EMBERD_ENGINES to a folder on another disk.",
        )
    return free >= needed + recipe.download_bytes

"""What an engine's environment holds: pinned, and measured once installed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from emberd.errors import SettingError

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

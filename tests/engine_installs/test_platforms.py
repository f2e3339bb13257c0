"""Unsupported platforms are refused before the installation begins."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from emberd.errors import InstallError
from emberd.installs import RECIPES, Recipe, interpreters, recipes

SGLANG = RECIPES["sglang"]


def python_of(version: str, folder: Path, says: str | None = None) -> str:
    """Put a program that says that it is this Python into a folder."""
    folder.mkdir(exist_ok=True)
    program = folder / f"python{version}"
    program.write_text(f"#!/bin/sh\necho {version if says is None else says}\n")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    ("system", "machine"),
    [("Darwin", "arm64"), ("Windows", "AMD64"), ("Linux", "riscv64"), ("Linux", "i686")],
)
def test_sglang_is_refused_where_it_has_no_wheels(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(InstallError, match=f"no wheels for {system} {machine}.*EMBERD_BASE_URL"):
        recipes.check_platform(SGLANG)


@pytest.mark.parametrize(
    ("libc", "said"),
    [
        (("glibc", "2.31"), "needs glibc 2.34 or newer, but this system has glibc 2.31"),
        (("", ""), "this system has no GNU libc"),
        (("glibc", "2.34"), None),
        (("glibc", "2.36"), None),
    ],
)
def test_sglang_is_refused_on_an_old_libc(
    monkeypatch: pytest.MonkeyPatch, libc: tuple[str, str], said: str | None
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    if said is None:
        recipes.check_platform(SGLANG)
    else:
        with pytest.raises(InstallError, match=said):
            recipes.check_platform(SGLANG)


def test_running_python_is_used_if_it_has_wheels() -> None:
    assert interpreters.find_python(SGLANG) == sys.executable


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=str)
def test_a_python_that_is_too_new_looks_for_another_on_the_path(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 15, 0))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InstallError, match=r"wheels for CPython 3\.11, 3\.12, .*this is 3\.15"):
        interpreters.find_python(recipe)
    # pyenv leaves programs of versions that are not there.
    python_of("3.13", tmp_path, says="")
    twelve = python_of("3.12", tmp_path)
    python_of("3.11", tmp_path)
    assert interpreters.find_python(recipe) == twelve

"""Compilers are searched where SGLang searches, and only on machines with a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import examined
from emberd.doctor import gpu
from emberd.doctor.findings import Finding, Level
from emberd.settings import DEFAULT_MODEL
from fake_nvml import Card, Nvml


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with a GPU and an empty folder as its path."""
    monkeypatch.setitem(sys.modules, "pynvml", Nvml([Card()]))
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_HOME", "CUDA_PATH", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpu, "_DEFAULT_CUDA", tmp_path / "cuda")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def program(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def look(home: Path, **more: str) -> list[Finding]:
    return list(gpu.check_compilers(examined.wanted(home, DEFAULT_MODEL, **more)))


def test_without_compilers_there_is_a_note_with_what_to_install(bare: Path) -> None:
    [found] = look(bare)
    assert found.level is Level.NOTE
    assert found.fact.startswith("no nvcc and no C++ compiler found")
    assert "CUDA 13 toolkit" in found.advice
    assert "build-essential" in found.advice


@pytest.mark.parametrize("host", ["c++", "g++"])
@pytest.mark.parametrize("place", ["nvcc", "cuda/bin/nvcc"])
def test_compilers_on_the_path_or_at_the_usual_place_are_found(
    bare: Path, place: str, host: str
) -> None:
    paths = program(bare / place), program(bare / host)
    assert examined.told(look(bare)) == [(Level.OK, ", ".join(paths), "")]


def test_a_folder_that_is_named_decides(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang asks no other place then."""
    program(bare / "nvcc")
    program(bare / "c++")
    monkeypatch.setenv("CUDA_HOME", str(bare / "own"))
    assert look(bare)[0].fact.startswith("no nvcc found")
    program(bare / "own/bin/nvcc")
    assert look(bare)[0].level is Level.OK


def test_a_compiler_that_is_named_and_not_there_is_missing(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(bare / "nvcc")
    program(bare / "c++")
    monkeypatch.setenv("CXX", "clang++ -O2")
    assert look(bare)[0].fact.startswith("no C++ compiler found")


def test_where_none_will_be_used_none_is_looked_for(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert look(bare, device="cpu") == look(bare, engine="demo") == []
    assert look(bare, base_url="http://other:1") == []
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(init_error=12))
    assert look(bare) == []

"""Threads and number formats of the processor."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emberd.serving import hardware
from emberd.system import capacity


def test_openmp_is_given_the_cores_and_a_short_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(capacity, "cores", lambda: 3)
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", dict(os.environ))
        hardware.set_threads()
        assert (os.environ["OMP_NUM_THREADS"], os.environ["GOMP_SPINCOUNT"]) == ("3", "1000")


def test_threads_that_the_user_chose_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    hardware.set_threads()
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.parametrize(
    ("line", "native"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 clzero", True),
        ("flags\t\t: fpu amx_bf16 amx_tile", True),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("flags\t\t: fpu avx2 avx512f", False),
        ("model name\t: of bf16", False),
    ],
)
def test_bfloat16_is_native_where_the_processor_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, native: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\n\n{line}\n")
    monkeypatch.setattr(hardware, "_CPU_FILE", tmp_path / "cpuinfo")
    assert hardware.multiplies_bfloat16() is native


def test_unknown_processor_has_no_native_bfloat16(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hardware, "_CPU_FILE", tmp_path / "none")
    assert hardware.multiplies_bfloat16() is False

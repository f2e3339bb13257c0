"""GPUs are found as CUDA would show them, and their absence is explained."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fake_nvml
from emberd.engines import gpus
from emberd.engines.gpus import Gpu, freest, survey
from fake_nvml import GIB, Card, Nvml

A = Card("GPU-aaaa", free=20 * GIB)
B = Card("GPU-bbbb", free=22 * GIB)
C = Card("GPU-bbcc", free=10 * GIB)
CARDS = (A, B, C)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    made = Nvml(CARDS)
    monkeypatch.setitem(sys.modules, "pynvml", made)
    return made


def uuids(environ: dict[str, str]) -> list[str]:
    return [gpu.uuid for gpu in survey(environ).gpus]


def test_a_gpu_is_described_by_what_its_driver_says(nvml: Nvml) -> None:
    nvml.cards = (A,)
    found = survey({})
    assert found.gpus == (Gpu(0, "GPU-aaaa", "NVIDIA A10G", 24 * GIB, 20 * GIB, (8, 6)),)
    assert (found.driver, found.cuda, found.problem, found.notes) == (
        "580.95.05",
        (13, 0),
        None,
        (),
    )


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (None, ["GPU-aaaa", "GPU-bbbb", "GPU-bbcc"]),
        ("2,0", ["GPU-bbcc", "GPU-aaaa"]),
        (" 1 , 2", ["GPU-bbbb", "GPU-bbcc"]),
        ("0,7,1", ["GPU-aaaa"]),
        ("1,-1,2", ["GPU-bbbb"]),
        ("0,0", []),
        ("", []),
        ("-1", []),
        ("none", []),
        ("GPU-a", ["GPU-aaaa"]),
        ("GPU-bbcc,GPU-aaaa", ["GPU-bbcc", "GPU-aaaa"]),
        ("GPU-bb", []),
        ("GPU-aaaa,1", ["GPU-aaaa", "GPU-bbbb"]),
    ],
)
def test_the_visible_gpus_are_those_that_cuda_would_show(
    nvml: Nvml, named: str | None, expected: list[str]
) -> None:
    assert uuids({} if named is None else {"CUDA_VISIBLE_DEVICES": named}) == expected


def test_old_binding_that_returns_bytes_gives_the_same_names(nvml: Nvml) -> None:
    # The distribution pynvml before 11.5 hides that of nvidia-ml-py where both are installed.
    nvml.driver = b"580.1"  # type: ignore[assignment]
    nvml.cards = [Card(b"GPU-aaaa", b"NVIDIA A10G")]  # type: ignore[arg-type]
    found = survey({"CUDA_VISIBLE_DEVICES": "GPU-aaaa"})
    assert found.driver == "580.1"
    assert [(gpu.uuid, gpu.name) for gpu in found.gpus] == [("GPU-aaaa", "NVIDIA A10G")]


@pytest.mark.parametrize("named", ["", "-1", "9"])
def test_hidden_gpus_are_a_problem_that_names_the_variable(nvml: Nvml, named: str) -> None:
    problem = survey({"CUDA_VISIBLE_DEVICES": named}).problem or ""
    assert f"CUDA_VISIBLE_DEVICES={named!r} selects none of the 3 GPUs" in problem
    assert "CUDA_VISIBLE_DEVICES=GPU-aaaa" in problem


def test_with_mig_the_instances_are_seen_and_the_card_is_not(nvml: Nvml) -> None:
    parts = (Card("MIG-1", free=4 * GIB), None, Card("MIG-2", free=9 * GIB))
    nvml.cards = (Card("GPU-mig", capability=(9, 0), instances=parts), A)
    assert [(gpu.uuid, gpu.capability) for gpu in survey({}).gpus] == [
        ("MIG-1", (9, 0)),
        ("MIG-2", (9, 0)),
        ("GPU-aaaa", (8, 6)),
    ]
    assert uuids({"CUDA_VISIBLE_DEVICES": "MIG-2"}) == ["MIG-2"]
    assert uuids({"CUDA_VISIBLE_DEVICES": "1"}) == ["GPU-aaaa"]


def test_mig_without_an_instance_is_a_problem(nvml: Nvml) -> None:
    nvml.cards = (Card(instances=()),)
    assert "MIG is enabled" in (survey({}).problem or "")


def test_inaccessible_gpu_is_left_out_and_not_numbered(nvml: Nvml) -> None:
    nvml.cards = (Card(error=4), B, C)
    found = survey({"CUDA_VISIBLE_DEVICES": "0"})
    assert [(gpu.uuid, gpu.index) for gpu in found.gpus] == [("GPU-bbbb", 1)]
    assert found.notes == ("GPU 0 cannot be read: NVML error 4",)


@pytest.mark.parametrize(
    ("environ", "noted"),
    [
        ({"CUDA_VISIBLE_DEVICES": "1"}, True),
        ({"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, False),
        ({"CUDA_VISIBLE_DEVICES": "GPU-aaaa"}, False),
        ({}, False),
    ],
)
def test_numbers_of_gpus_of_different_kinds_get_a_note(
    nvml: Nvml, environ: dict[str, str], noted: bool
) -> None:
    nvml.cards = (A, Card("GPU-dddd", name="NVIDIA H100"))
    assert any("UUID" in note for note in survey(environ).notes) == noted


@pytest.mark.parametrize(
    ("code", "word"),
    [
        (18, "reboot"),
        (9, "modprobe"),
        (4, "/dev/nvidia"),
        (12, "libnvidia-ml.so.1"),
        (999, "NVML error 999"),
    ],
)
def test_driver_errors_are_explained(nvml: Nvml, code: int, word: str) -> None:
    nvml.init_error = code
    found = survey({})
    assert found.gpus == ()
    assert word in (found.problem or "")


def test_a_driver_without_its_library_points_at_the_container(
    nvml: Nvml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvml.init_error = 12
    monkeypatch.setattr(gpus, "_LOADED", tmp_path)
    assert "--gpus all" in (survey({}).problem or "")


def test_every_initialisation_is_closed(nvml: Nvml) -> None:
    survey({})
    nvml.driver = "580.1"
    assert survey({}).driver == "580.1"
    nvml.cards = (Card(error=15),)
    assert "GPU 0 cannot be read" in (survey({}).problem or "")
    assert nvml.open == 0


def test_without_the_binding_the_problem_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in (survey({}).problem or "")


def test_the_freest_come_first_and_the_lower_number_on_a_tie(nvml: Nvml) -> None:
    found = survey({}).gpus
    assert [gpu.uuid for gpu in freest(found, 2)] == ["GPU-bbbb", "GPU-aaaa"]
    assert freest((), 2) == ()


# ---------------------------------------------------------------- through the real binding

needs_binding = pytest.mark.skipif(
    importlib.util.find_spec("pynvml") is None, reason="nvidia-ml-py is not installed"
)


def surveyed(folder: Path, **environ: str) -> str:
    program = "from emberd.engines.gpus import survey; print(survey())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "LD_LIBRARY_PATH": str(folder), **environ},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def library(folder: Path, init: int) -> Path:
    source = folder / "nvml.c"
    source.write_text(fake_nvml.LIBRARY, encoding="ascii")
    compiler = shutil.which("cc") or pytest.skip("no C compiler")
    command = [compiler, "-shared", "-fPIC", f"-DINIT={init}", "-o"]
    subprocess.run([*command, str(folder / "libnvidia-ml.so.1"), str(source)], check=True)
    return folder


@needs_binding
def test_the_real_binding_reads_a_library_of_the_same_interface(tmp_path: Path) -> None:
    said = surveyed(library(tmp_path, 0), CUDA_VISIBLE_DEVICES="GPU-b")
    assert "uuid='GPU-bbbb', name='NVIDIA L4'" in said
    assert f"total_bytes={24 * GIB}, free_bytes={20 * GIB}, capability=(8, 9)" in said
    assert "driver='580.95.05', cuda=(13, 1), problem=None" in said


@needs_binding
def test_real_binding_reports_a_driver_version_mismatch(tmp_path: Path) -> None:
    assert "different versions" in surveyed(library(tmp_path, 18))


@needs_binding
@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="this machine has a GPU")
def test_machine_without_a_gpu_is_reported(tmp_path: Path) -> None:
    assert "no NVIDIA driver" in surveyed(tmp_path)

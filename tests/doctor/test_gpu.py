"""GPUs: described, with what is wrong with the driver, and with who holds their memory."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import examined
from emberd.doctor import gpu
from emberd.doctor.findings import Level
from emberd.settings import StartOptions
from fake_nvml import GIB, Card, Nvml

QWEN = "Qwen/Qwen3-Embedding-4B"


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    made = Nvml([Card(free=24 * GIB)])
    monkeypatch.setitem(sys.modules, "pynvml", made)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return made


def test_a_good_card_is_described(nvml: Nvml, tmp_path: Path) -> None:
    found = examined.told(gpu.check_gpus(examined.wanted(tmp_path)))
    assert found == [
        (Level.OK, "NVIDIA 580.95.05, runs CUDA up to 13.0", ""),
        (Level.OK, "NVIDIA A10G (8.6, Ampere), 24.0 of 24.0 GiB free", ""),
    ]
    assert nvml.open == 0


def test_an_old_driver_is_noted_with_the_one_that_is_needed(nvml: Nvml, tmp_path: Path) -> None:
    nvml.cuda, nvml.driver = 12_040, "550.54.15"
    found = examined.named(gpu.check_gpus(examined.wanted(tmp_path)), "driver")
    assert found.fact == "NVIDIA 550.54.15, runs CUDA up to 12.4, but SGLang needs 13.0"
    assert found.advice == "install driver 580 or newer"


def test_an_old_card_is_noted(nvml: Nvml, tmp_path: Path) -> None:
    nvml.cards = [Card(name="Tesla V100", capability=(7, 0))]
    found = examined.named(gpu.check_gpus(examined.wanted(tmp_path)), "gpu 0")
    assert found.level is Level.NOTE
    assert "too old for SGLang, which needs capability 8.0" in found.fact


def test_without_a_driver_there_is_a_note_that_says_so(nvml: Nvml, tmp_path: Path) -> None:
    nvml.init_error = 9
    [found] = gpu.check_gpus(examined.wanted(tmp_path))
    assert found.fact == "the NVIDIA driver is installed but not loaded"
    assert found.advice == "modprobe nvidia, or reboot"


def test_whoever_holds_a_cards_memory_is_named_without_a_command_line(
    nvml: Nvml, tmp_path: Path
) -> None:
    nvml.cards = [Card(free=4 * GIB)]
    nvml.holders = {
        "GPU-aaaa": [
            SimpleNamespace(pid=os.getpid(), usedGpuMemory=19 * GIB),
            SimpleNamespace(pid=2**22 + 1, usedGpuMemory=None),
        ]
    }
    *_, found = gpu.check_gpus(examined.wanted(tmp_path))
    assert found.fact.startswith("20.0 GiB are used: ")
    assert f"(process {os.getpid()} of " in found.fact
    assert f"19.0 GiB, process {2**22 + 1} 0.0 GiB" in found.fact
    assert sys.argv[0] not in found.fact


def test_holders_outside_of_the_container_cannot_be_named(nvml: Nvml, tmp_path: Path) -> None:
    nvml.cards = [Card(free=4 * GIB)]
    *_, found = gpu.check_gpus(examined.wanted(tmp_path))
    assert found.fact == "20.0 GiB are used by processes not visible here"


def test_a_model_that_fits_is_said_to_fit(nvml: Nvml, tmp_path: Path) -> None:
    [found] = gpu.check_gpu_memory(examined.wanted(tmp_path, QWEN))
    assert found.level is Level.OK
    assert "of 24.0 GiB free on NVIDIA A10G" in found.fact


def test_a_quantised_model_needs_less_memory(nvml: Nvml, tmp_path: Path) -> None:
    nvml.cards = [Card(free=24 * GIB, capability=(8, 9))]
    [plain] = gpu.check_gpu_memory(examined.wanted(tmp_path, QWEN))
    [quantised] = gpu.check_gpu_memory(examined.wanted(tmp_path, QWEN, quantization="fp8"))
    assert _planned_gib(quantised.fact) < _planned_gib(plain.fact) - 3


def _planned_gib(fact: str) -> float:
    return float(fact.partition("about ")[2].partition(" ")[0])


def test_a_model_that_does_not_fit_is_a_problem_with_its_sum(nvml: Nvml, tmp_path: Path) -> None:
    nvml.cards = [Card(free=6 * GIB)]
    [found] = gpu.check_gpu_memory(examined.wanted(tmp_path, QWEN))
    assert found.level is Level.PROBLEM
    assert "6.0 GiB of 24.0 GiB is free on NVIDIA A10G" in found.fact
    assert "Qwen/Qwen3-Embedding-0.6B, which fits" in found.advice


def test_models_that_share_are_planned_with_all_gpus_as_a_start_does(
    nvml: Nvml, tmp_path: Path
) -> None:
    nvml.cards = [Card("GPU-a", free=15 * GIB), Card("GPU-b", free=15 * GIB)]
    both = StartOptions(share_gpu=(QWEN, "Qwen/Qwen3-Reranker-4B"))
    [found] = gpu.check_gpu_memory(examined.wanted(tmp_path, QWEN, options=both))
    assert found.level is Level.OK, found.fact  # the other one will be started on the other GPU
    nvml.cards = [Card("GPU-a", free=24 * GIB)]
    [found] = gpu.check_gpu_memory(examined.wanted(tmp_path, QWEN, options=both))
    assert found.level is Level.OK
    assert "Qwen/Qwen3-Reranker-4B" in found.fact


@pytest.mark.parametrize(
    "more",
    [
        {"device": "cpu"},
        {"engine": "transformers"},
        {"model": "somebody/unknown"},
        {"options": StartOptions(tp_size=2)},
    ],
)
def test_room_is_not_counted_where_no_card_is_to_be_used(
    nvml: Nvml, tmp_path: Path, more: dict[str, Any]
) -> None:
    assert list(gpu.check_gpu_memory(examined.wanted(tmp_path, **{"model": QWEN, **more}))) == []

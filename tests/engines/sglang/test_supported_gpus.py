"""Which GPUs can run SGLang."""

from __future__ import annotations

from dataclasses import replace

import pytest

from emberd.engines.gpus import Survey
from emberd.engines.sglang.support import freest_supported, generation, why_unsuitable
from memory_cards import card

A10G = replace(card(24), uuid="GPU-a", name="NVIDIA A10G")
V100 = replace(card(16, capability=(7, 0)), uuid="GPU-v", name="Tesla V100")
BUSY = replace(card(80, 10, (9, 0)), uuid="GPU-h", name="NVIDIA H100")


def found(*gpus: object, cuda: tuple[int, int] = (13, 0)) -> Survey:
    return Survey(gpus, driver="580.95.05", cuda=cuda)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ((7, 5), None),
        ((8, 0), "Ampere"),
        ((8, 6), "Ampere"),
        ((8, 9), "Ada"),
        ((9, 0), "Hopper"),
        ((10, 0), "Blackwell"),
        ((10, 3), "Blackwell"),
        ((12, 0), "Blackwell (consumer)"),
    ],
)
def test_the_generation_follows_from_the_capability(
    capability: tuple[int, int], name: str | None
) -> None:
    assert generation(capability) == name


def test_a_suitable_machine_is_not_refused() -> None:
    assert why_unsuitable(found(A10G)) is None
    assert why_unsuitable(found(A10G, BUSY), 2) is None


def test_the_reason_why_no_gpu_is_seen_is_passed_on() -> None:
    assert why_unsuitable(Survey(problem="no driver; reboot")) == "no driver; reboot"


def test_an_old_gpu_is_refused_by_name() -> None:
    reason = why_unsuitable(found(V100)) or ""
    assert "compute capability 8.0 or more" in reason
    assert "Tesla V100 (7.0)" in reason


def test_an_old_driver_is_refused_with_the_version_to_install() -> None:
    reason = why_unsuitable(found(A10G, cuda=(12, 8))) or ""
    assert "driver 580.95.05 runs CUDA up to 12.8" in reason
    assert "install driver 580 or newer" in reason


@pytest.mark.parametrize("capability", [(8, 0), (8, 6)])
def test_a_gpu_that_does_not_multiply_in_fp8_is_refused_for_it(capability: tuple[int, int]) -> None:
    older, ada = replace(A10G, capability=capability), card(16, capability=(8, 9))
    reason = why_unsuitable(found(older), quantization="fp8") or ""
    assert "from compute capability 8.9 on" in reason
    assert f"NVIDIA A10G ({capability[0]}.{capability[1]})" in reason
    assert why_unsuitable(found(older)) is None
    assert why_unsuitable(found(older, ada), quantization="fp8") is None
    assert freest_supported((older, ada), quantization="fp8") == (ada,)


def test_more_gpus_than_there_are_is_refused() -> None:
    assert "2 GPUs were requested" in (why_unsuitable(found(A10G, V100), 2) or "")


def test_the_suitable_gpu_with_the_most_free_memory_is_chosen() -> None:
    roomy = replace(V100, free_bytes=1 << 50)
    assert freest_supported((BUSY, roomy, A10G)) == (A10G,)
    assert freest_supported((BUSY, roomy, A10G), 2) == (A10G, BUSY)

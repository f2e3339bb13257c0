"""The memory that a start of SGLang needs: planned, corrected by earlier starts, and estimated."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import checkpoints_made
from emberd.engines import Launch
from emberd.engines.gpus import empty_card
from emberd.engines.sglang import ENGINE
from emberd.errors import NoEngineError, StartError
from emberd.settings import ServerSpec, StartOptions
from emberd.system import processes
from fake_nvml import GIB, Card, Nvml
from sglang_plans import GPU, LAUNCH, set_installed

pytestmark = pytest.mark.usefixtures("installed")


def test_a_reranker_has_memory_for_the_answers_of_as_many_prompts_as_a_batch_may_have(
    cards: Nvml,
) -> None:
    specs = (
        ServerSpec("Qwen/Qwen3-Embedding-4B"),
        ServerSpec("Qwen/Qwen3-Reranker-4B", task="rerank"),
    )
    embeds, reranks = (
        ENGINE.estimate(spec, StartOptions(), [empty_card(24, (8, 6))]) for spec in specs
    )
    assert embeds is not None
    assert reranks is not None
    # As many prompts as a batch may have: the vocabulary in twelve bytes a token.
    assert reranks.activation_bytes - embeds.activation_bytes == 128 * 151_669 * 12
    cards.cards = [Card("GPU-a", total=24 * GIB, free=23 * GIB)]
    embed_command, rerank_command = (ENGINE.plan(spec, LAUNCH).command for spec in specs)
    assert rerank_command[rerank_command.index("--prefill-max-requests") + 1] == "128"
    assert "--prefill-max-requests" not in embed_command


def test_a_reranker_that_does_not_fit_is_not_answered_with_an_embedding_model(cards: Nvml) -> None:
    spec = ServerSpec("Qwen/Qwen3-Reranker-8B", task="rerank")
    with pytest.raises(StartError) as caught:
        ENGINE.estimate(spec, StartOptions(), [empty_card(16, (8, 6))])
    assert "Qwen/Qwen3-Reranker-0.6B" in str(caught.value)
    assert "Embedding" not in str(caught.value)


def test_a_card_that_is_too_small_is_an_error_with_the_sum(
    cards: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards.cards = [Card(free=3 * GIB)]
    with pytest.raises(StartError, match=r"need .* GiB .*3\.0 GiB of 24\.0 GiB is free") as caught:
        ENGINE.plan(GPU, LAUNCH)
    assert "Qwen3-Embedding-0.6B" not in caught.value.cause


def test_what_an_earlier_start_used_beyond_its_plan_is_planned_for(
    cards: Nvml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    launch = replace(LAUNCH, home=str(tmp_path))  # not EMBERD_HOME: a manager may have another home
    monkeypatch.setattr(processes, "has_pids_of_host", lambda: True)
    cards.cards = [Card("GPU-a", total=48 * GIB, free=47 * GIB)]
    first = ENGINE.plan(GPU, launch).gpu_usage
    assert first is not None
    assert list(first.gpus) == ["GPU-a"]
    used_bytes = first.planned_bytes + GIB
    cards.holders = {"GPU-a": [SimpleNamespace(pid=os.getpid(), usedGpuMemory=used_bytes)]}
    first.compare([os.getpid()])
    assert list((tmp_path / "gpu-memory").iterdir())
    plan = ENGINE.plan(GPU, launch)
    [total] = [reason.what for reason in plan.reasons if reason.what.startswith("memory ")]
    assert total == f"memory {used_bytes / GIB:.1f} GiB"
    assert any(reason.what.startswith("used ") for reason in plan.reasons)
    again = plan.gpu_usage
    assert again is not None
    assert again.planned_bytes == first.planned_bytes  # so that the difference is not added twice
    again.compare([os.getpid()])
    assert ENGINE.plan(GPU, launch).reasons[-2:] == plan.reasons[-2:]


def test_another_kind_of_start_does_not_use_the_difference(
    cards: Nvml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cards.cards = [Card("GPU-a", capability=(9, 0)), Card("GPU-b", capability=(9, 0))]
    folder = checkpoints_made.write(tmp_path / "m", tensors={"a": [64, 64]})
    plain = ServerSpec("Qwen/Qwen3-Embedding-0.6B")

    def file(spec: ServerSpec, tp_size: int = 1) -> Path:
        launch = replace(LAUNCH, home=str(tmp_path), options=StartOptions(tp_size=tp_size))
        usage = ENGINE.plan(spec, launch).gpu_usage
        assert usage is not None
        return usage.earlier.file

    others = [
        file(replace(plain, model="Qwen/Qwen3-Embedding-4B", context_tokens=2048)),
        file(ServerSpec(folder)),
        file(replace(plain, quantization="fp8")),
        file(replace(plain, deterministic=True)),
        file(plain, tp_size=2),
    ]
    set_installed(monkeypatch, "0.5.22")
    others.append(file(plain))
    set_installed(monkeypatch, "0.5.23")
    cards.cards = [Card("GPU-a", name="NVIDIA L4", capability=(9, 0))]
    others.append(file(plain))
    cards.cards = [Card("GPU-a", capability=(9, 0))]
    assert len({*others, file(plain)}) == len(others) + 1
    assert file(replace(plain, context_tokens=2048)) == file(plain)


def test_a_start_with_own_arguments_or_on_a_cpu_is_not_compared(
    cards: Nvml, tmp_path: Path
) -> None:
    options = StartOptions(arguments=("--schedule-policy", "fcfs"))
    assert ENGINE.plan(GPU, replace(LAUNCH, options=options)).gpu_usage is None
    folder = checkpoints_made.write(tmp_path / "m", tensors={"a": [64, 64]})
    assert ENGINE.plan(ServerSpec(folder, device="cpu"), LAUNCH).gpu_usage is None


def test_with_own_arguments_the_plan_is_not_that_of_the_measured_kernels(cards: Nvml) -> None:
    cards.cards = [Card("GPU-a", total=141 * GIB, free=140 * GIB, capability=(9, 0))]
    own = replace(LAUNCH, options=StartOptions(arguments=("--attention-backend", "triton")))

    def activations(launch: Launch) -> str:
        plan = ENGINE.plan(GPU, launch)
        return next(r.what for r in plan.reasons if r.what.startswith("activations"))

    assert activations(own) != activations(LAUNCH)


def test_what_an_earlier_start_used_prevents_no_start(cards: Nvml, tmp_path: Path) -> None:
    launch = replace(LAUNCH, home=str(tmp_path))
    cards.cards = [Card("GPU-a", total=48 * GIB, free=47 * GIB)]
    planned = ENGINE.plan(GPU, launch).gpu_usage
    assert planned is not None
    file = planned.earlier.file
    file.parent.mkdir()
    content = {"kind": planned.earlier.kind, "planned_bytes": GIB, "used_bytes": 90 * GIB}
    file.write_text(json.dumps(content))
    file.chmod(0o600)
    plan = ENGINE.plan(GPU, launch)
    assert plan.gpu_usage is not None
    assert plan.gpu_usage.planned_bytes == planned.planned_bytes
    assert any(str(file) in note for note in plan.notes)


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, StartOptions()),
        ({"quantization": "fp8"}, StartOptions()),
        ({"deterministic": True, "context_tokens": 2048}, StartOptions(tp_size=2)),
    ],
)
def test_an_estimate_is_the_plan_of_a_start_on_such_a_card(
    cards: Nvml, given: dict[str, Any], options: StartOptions
) -> None:
    spec = ServerSpec(**given)
    gpu = empty_card(48, (8, 9))
    estimate = ENGINE.estimate(spec, options, [gpu] * options.gpus)
    assert estimate is not None
    cards.cards = [
        Card(f"GPU-{n}", total=gpu.total_bytes, free=gpu.free_bytes, capability=(8, 9))
        for n in range(2)
    ]
    plan = ENGINE.plan(spec, replace(LAUNCH, options=options))
    [total] = [reason.what for reason in plan.reasons if reason.what.startswith("memory ")]
    assert total == f"memory {estimate.need_bytes / GIB:.1f} GiB"


def test_an_estimate_needs_neither_a_gpu_nor_the_engine(
    no_cards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_installed(monkeypatch, None)
    estimate = ENGINE.estimate(GPU, StartOptions(), [empty_card(24, (8, 0))])
    assert estimate is not None
    with pytest.raises(StartError):
        ENGINE.estimate(GPU, StartOptions(), [empty_card(8, (8, 0))])
    assert ENGINE.estimate(ServerSpec("a/b"), StartOptions(), [empty_card(24, (8, 0))]) is None


FP8 = replace(GPU, quantization="fp8")


@pytest.mark.parametrize(
    "spec",
    [replace(FP8, deterministic=True), replace(GPU, quantization="awq")],
    ids=["deterministic", "awq"],
)
def test_what_is_never_started_is_not_estimated(cards: Nvml, spec: ServerSpec) -> None:
    cards.cards = [Card(total=141 * GIB, free=140 * GIB, capability=(9, 0))]
    assert ENGINE.why_unavailable(spec)
    with pytest.raises(NoEngineError):
        ENGINE.estimate(spec, StartOptions(), [empty_card(141, (9, 0))])


@pytest.mark.parametrize(
    ("spec", "capability", "options"),
    [
        (FP8, (8, 0), StartOptions()),
        (FP8, (8, 6), StartOptions(tp_size=2)),
        (GPU, (7, 5), StartOptions()),
        (GPU, (9, 0), StartOptions(arguments=("--dtype", "float16"))),
    ],
    ids=["fp8-8.0", "fp8-8.6", "7.5", "reserved"],
)
def test_a_card_on_which_nothing_is_started_is_not_estimated(
    cards: Nvml, spec: ServerSpec, capability: tuple[int, int], options: StartOptions
) -> None:
    pair = [Card(name, total=80 * GIB, free=79 * GIB, capability=capability) for name in "ab"]
    cards.cards = pair
    with pytest.raises(StartError):
        ENGINE.plan(spec, replace(LAUNCH, options=options))
    with pytest.raises(StartError):
        ENGINE.estimate(spec, options, [empty_card(80, capability)] * options.gpus)
    suitable = StartOptions(tp_size=options.tp_size)
    better = ENGINE.estimate(spec, suitable, [empty_card(80, (8, 9))] * options.tp_size)
    assert better is not None

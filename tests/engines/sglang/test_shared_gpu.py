"""Servers that share a GPU are planned together; what one has planned is not free for another."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, permutations
from types import SimpleNamespace

import pytest

from emberd import installs
from emberd.catalog import EMBED, RERANK
from emberd.engines import Launch
from emberd.engines.base import Plan
from emberd.engines.gpu_usage import GpuMemory, GpuServer, without_pending
from emberd.engines.gpus import Gpu, survey
from emberd.engines.model_shape import KNOWN
from emberd.engines.sglang import ENGINE
from emberd.engines.sglang.memory import GIB, Load, on_gpu, plan_memory
from emberd.engines.sglang.shared_gpu import Sharer, plan_shared
from emberd.errors import StartError
from emberd.installs import Interpreter
from emberd.settings import ServerSpec, StartOptions
from emberd.system import processes
from fake_nvml import Card, Nvml
from memory_cards import HOPPER, card

SMALL = ("Qwen/Qwen3-Embedding-0.6B", "Qwen/Qwen3-Reranker-0.6B")
MIDDLE = ("Qwen/Qwen3-Embedding-4B", "Qwen/Qwen3-Reranker-4B")
EMBEDDER, RERANKER = ServerSpec(MIDDLE[0]), ServerSpec(MIDDLE[1], task=RERANK)
SHARING = StartOptions(share_gpu=MIDDLE)


def sharers(gpu: Gpu, names: Sequence[str], context: int | None = None) -> list[Sharer]:
    return [Sharer(name, Load(on_gpu(gpu), KNOWN[name], context)) for name in names]


@pytest.mark.parametrize("names", [SMALL, MIDDLE, (SMALL[0], MIDDLE[1]), (*MIDDLE, SMALL[0])])
@pytest.mark.parametrize("capability", [(8, 6), HOPPER])
def test_plans_of_servers_that_share_a_gpu_fit_together(
    names: Sequence[str], capability: tuple[int, int]
) -> None:
    tried = 0
    for tenths in range(60, 900, 17):
        gpu = card(96, tenths / 10, capability)
        try:
            plans = [
                plan_shared(own, others)
                for own in sharers(gpu, names)
                for others in [[each for each in sharers(gpu, names) if each.model != own.model]]
            ]
        except StartError:
            continue
        tried += 1
        assert sum(plan.need_bytes for plan in plans) <= gpu.free_bytes, tenths
        assert len({plan.context_tokens for plan in plans}) == 1, tenths
        for plan in plans:
            # SGLang measures the free memory before the others have taken theirs, or after that.
            for measured in (gpu.free_bytes, plan.need_bytes + (gpu.free_bytes >> 30)):
                kept = plan.fraction * (measured - GIB)
                assert kept >= (plan.weights_bytes + plan.kv_bytes) * 0.99, tenths
    assert tried > 20


def test_more_memory_gives_longer_texts_or_larger_batches() -> None:
    plans = []
    for tenths in range(213, 420, 3):
        own, other = sharers(card(48, tenths / 10), MIDDLE)
        plans.append(plan_shared(own, [other]))
    assert plans[-1].context_tokens == 32_768
    for less, more in pairwise(plans):
        assert less.max_prefill_tokens <= more.max_prefill_tokens
        assert less.context_tokens <= more.context_tokens


def test_the_second_server_gets_no_shorter_texts_than_the_first_and_both_fit() -> None:
    """It is planned with what is left, without the plan that the first start made for it."""
    tried = 0
    for size in range(10, 50):  # on larger cards no text is shortened
        gpu = card(size, capability=(8, 9))
        for names in permutations(KNOWN, 2):
            own, other = sharers(gpu, names)
            try:
                first = plan_shared(own, [other])
            except StartError:
                continue
            tried += 1
            left = replace(gpu, free_bytes=gpu.free_bytes - first.need_bytes)
            second = plan_memory(left, KNOWN[other.model], None)
            assert second.context_tokens >= first.context_tokens, (size, names)
            assert second.need_bytes <= left.free_bytes, (size, names)
    assert tried > 600


def test_a_context_that_was_requested_is_not_shortened() -> None:
    own, other = sharers(card(48), MIDDLE, 8192)
    assert plan_shared(own, [other]).longest_text_tokens == 8192
    own, other = sharers(card(24), MIDDLE, 8192)
    with pytest.raises(StartError) as refused:
        plan_shared(own, [other])
    assert "request a shorter context" in refused.value.advice
    assert "texts of 8,199 tokens" in refused.value.cause


def test_a_plan_says_what_it_leaves_and_why_its_texts_are_short() -> None:
    own, other = sharers(card(24), MIDDLE)
    plan = plan_shared(own, [other])
    assert plan.free_bytes == card(24).free_bytes
    assert [reason.why for reason in plan.left] == [f"for a server of {MIDDLE[1]}"]
    (note,) = plan.notes
    assert MIDDLE[1] in note
    assert "5,113" in note


def test_models_that_do_not_fit_together_are_refused_with_their_sums() -> None:
    own, other = sharers(card(16), MIDDLE)
    with pytest.raises(StartError) as refused:
        plan_shared(own, [other])
    assert all(name in refused.value.cause for name in MIDDLE)
    assert " and ".join(SMALL) in refused.value.advice


# ------------------------------------------------------------ the engine


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    """A machine with SGLang and one empty GPU of 24 GB."""
    made = Nvml([Card("GPU-a", free=int(22.3 * GIB))])
    monkeypatch.setitem(sys.modules, "pynvml", made)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(processes, "has_pids_of_host", lambda: True)
    version = installs.RECIPES["sglang"].version
    found = Interpreter("/engines/python", version, "/engines/packages", "a test says so")
    monkeypatch.setattr(installs, "locate", lambda *_: found)
    return made


def plan_of(
    spec: ServerSpec, options: StartOptions = SHARING, servers: Sequence[GpuServer] = ()
) -> Plan:
    locked = tuple(ENGINE.exclusive_resources(spec, options, servers))
    launch = Launch(1, None, "start", "/state", options, locked, home="/home-of-it")
    return ENGINE.plan(spec, replace(launch, servers=servers))


def reserved(plan: Plan) -> GpuMemory:
    assert plan.gpu_memory is not None
    return plan.gpu_memory


def context_of(plan: Plan) -> int:
    command = list(plan.command)
    return int(command[command.index("--context-length") + 1])


def running(spec: ServerSpec, memory: GpuMemory, used_gib: float) -> GpuServer:
    pending = {uuid: memory.planned_bytes - int(used_gib * GIB) for uuid in memory.gpus}
    return GpuServer(spec, memory, pending)


def test_the_first_server_leaves_memory_and_the_second_uses_it(nvml: Nvml) -> None:
    first = plan_of(EMBEDDER)
    assert context_of(first) < context_of(plan_of(EMBEDDER, StartOptions()))
    nvml.cards[0].free -= reserved(first).loaded_bytes
    server = running(EMBEDDER, reserved(first), reserved(first).loaded_bytes / GIB)
    second = plan_of(RERANKER, servers=[server])
    assert context_of(second) >= context_of(first)
    total = reserved(first).planned_bytes + reserved(second).planned_bytes
    assert total <= int(22.3 * GIB)
    assert plan_of(RERANKER, StartOptions(), [server]).command == second.command


def test_a_server_that_waits_for_the_gpu_is_left_its_memory(nvml: Nvml) -> None:
    waiting = GpuServer(RERANKER, is_placed=False)
    assert context_of(plan_of(EMBEDDER, servers=[waiting])) == context_of(plan_of(EMBEDDER))
    elsewhere = GpuServer(RERANKER)  # on a CPU, or not started by emberd
    alone = plan_of(EMBEDDER, StartOptions())
    assert context_of(plan_of(EMBEDDER, servers=[elsewhere])) == context_of(alone)


def test_what_a_server_has_planned_and_not_taken_is_not_free(nvml: Nvml) -> None:
    planned = GpuMemory(("GPU-a",), 18 * GIB, 15 * GIB)
    nvml.cards[0].free -= 2 * GIB  # it is loading its weights
    with pytest.raises(StartError) as refused:
        plan_of(RERANKER, StartOptions(), [running(EMBEDDER, planned, 2)])
    assert f"{EMBEDDER.model} is planned to take 18.0 GiB there, 16.0 GiB" in refused.value.cause
    assert f"`emberd stop {EMBEDDER.model}`" in refused.value.advice
    assert f"`emberd up {EMBEDDER.model} {RERANKER.model}`" in refused.value.advice


def test_starting_both_is_not_advised_where_they_do_not_fit(nvml: Nvml) -> None:
    large = ServerSpec("Qwen/Qwen3-Reranker-8B", task=RERANK)
    planned = GpuMemory(("GPU-a",), 18 * GIB, 15 * GIB)
    nvml.cards[0].free -= 18 * GIB
    with pytest.raises(StartError) as refused:
        plan_of(large, StartOptions(), [running(EMBEDDER, planned, 18)])
    assert f"`emberd stop {EMBEDDER.model}`" in refused.value.advice
    assert "emberd up" not in refused.value.advice


def test_a_server_on_another_gpu_is_not_blamed(nvml: Nvml) -> None:
    nvml.cards[0].free = 4 * GIB
    planned = GpuMemory(("GPU-b",), 18 * GIB, 15 * GIB)
    with pytest.raises(StartError) as refused:
        plan_of(RERANKER, StartOptions(), [running(EMBEDDER, planned, 15)])
    assert EMBEDDER.model not in str(refused.value)


def test_of_two_gpus_the_one_that_is_not_planned_for_is_used(nvml: Nvml) -> None:
    nvml.cards = [Card("GPU-a", free=22 * GIB), Card("GPU-b", free=21 * GIB)]
    first = plan_of(EMBEDDER)
    # The other one will choose the other GPU, so it is left nothing here.
    assert context_of(first) == context_of(plan_of(EMBEDDER, StartOptions()))
    second = plan_of(RERANKER, servers=[running(EMBEDDER, reserved(first), 0)])
    assert sorted(reserved(first).gpus + reserved(second).gpus) == ["GPU-a", "GPU-b"]


@pytest.mark.parametrize(
    ("free_gib", "names"),
    [
        ((15.8, 22.3), ("Qwen/Qwen3-Embedding-8B", SMALL[1])),
        ((12.1, 33.5), ("Qwen/Qwen3-Embedding-8B", SMALL[1], MIDDLE[0])),
    ],
)
def test_models_that_fit_on_several_gpus_start_in_any_order(
    nvml: Nvml, free_gib: tuple[float, float], names: Sequence[str]
) -> None:
    for order in permutations(names):
        cards = [Card(f"GPU-{i}", free=int(free * GIB)) for i, free in enumerate(free_gib)]
        for each in cards:
            each.total = 48 * GIB
        nvml.cards = cards
        servers: list[GpuServer] = []
        for name in order:
            spec = ServerSpec(name, task=RERANK if KNOWN[name].reranks else EMBED)
            plan = reserved(plan_of(spec, StartOptions(share_gpu=tuple(sorted(names))), servers))
            servers.append(running(spec, plan, 0))
        for gpu in without_pending(survey().gpus, servers):
            assert gpu.free_bytes > 0, order


def test_a_second_gpu_without_space_does_not_count(nvml: Nvml) -> None:
    shared = plan_of(EMBEDDER)
    nvml.cards = [*nvml.cards, Card("GPU-b", free=2 * GIB)]
    assert context_of(plan_of(EMBEDDER)) == context_of(shared)


def test_a_model_whose_size_is_not_known_is_noted(nvml: Nvml) -> None:
    plan = plan_of(EMBEDDER, StartOptions(share_gpu=("somebody/unknown", "emberd/demo")))
    assert context_of(plan) == context_of(plan_of(EMBEDDER, StartOptions()))
    assert [note for note in plan.notes if "somebody/unknown" in note]
    assert not any("emberd/demo" in note for note in plan.notes)


def test_the_context_of_a_start_is_also_that_of_the_others(nvml: Nvml) -> None:
    assert context_of(plan_of(replace(EMBEDDER, context_tokens=4096))) > 4096
    with pytest.raises(StartError, match="share a GPU"):
        plan_of(replace(EMBEDDER, context_tokens=8192))


# ------------------------------------------------------------ planned, and not taken yet


def test_pending_memory_is_what_the_processes_do_not_have_yet(nvml: Nvml) -> None:
    memory = GpuMemory(("GPU-a",), 10 * GIB, 8 * GIB)
    nvml.holders = {"GPU-a": [SimpleNamespace(pid=7, usedGpuMemory=9 * GIB)]}
    assert memory.pending_bytes("GPU-a", [7], is_ready=True) == GIB
    assert memory.pending_bytes("GPU-b", [7], is_ready=True) == 0
    nvml.holders = {"GPU-a": [SimpleNamespace(pid=7, usedGpuMemory=12 * GIB)]}
    assert memory.pending_bytes("GPU-a", [7], is_ready=True) == 0


@pytest.mark.parametrize("is_ready", [True, False])
def test_where_nvml_tells_no_processes_a_ready_server_has_what_it_loaded(
    nvml: Nvml, monkeypatch: pytest.MonkeyPatch, is_ready: bool
) -> None:
    monkeypatch.setattr(processes, "has_pids_of_host", lambda: False)
    memory = GpuMemory(("GPU-a",), 10 * GIB, 8 * GIB)
    expected = 2 * GIB if is_ready else 10 * GIB
    assert memory.pending_bytes("GPU-a", [7], is_ready=is_ready) == expected


def test_free_memory_is_never_negative_nor_more_than_there_is() -> None:
    gpu = card(24, 5)
    memory = GpuMemory((gpu.uuid,), GIB, GIB)
    for pending, free in ((GIB, 4 * GIB), (9 * GIB, 0), (-90 * GIB, gpu.total_bytes)):
        [left] = without_pending([gpu], [GpuServer(EMBEDDER, memory, {gpu.uuid: pending})])
        assert left.free_bytes == free


def test_the_task_of_a_model_that_shares_is_that_of_its_name(nvml: Nvml) -> None:
    """The answers of a reranker take memory too."""
    embedders = StartOptions(share_gpu=(MIDDLE[0], SMALL[0]))
    left = {
        reason.what
        for options in (embedders, StartOptions(share_gpu=(MIDDLE[0], SMALL[1])))
        for reason in plan_of(ServerSpec(MIDDLE[0], task=EMBED), options).reasons
        if reason.what.startswith("left free")
    }
    assert len(left) == 2

"""Memory plans fit the device, and a refusal shows its sum."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from emberd.engines.model_shape import KNOWN, ModelShape
from emberd.engines.sglang.memory import (
    GIB,
    MAX_FRACTION,
    NO_CHUNKS,
    MemoryPlan,
    on_gpu,
    on_host,
    plan_memory,
)
from emberd.errors import StartError
from memory_cards import HOPPER, SIZES_GIB, card, plans

SMALL, MIDDLE, LARGE = (KNOWN[f"Qwen/Qwen3-Embedding-{size}"] for size in ("0.6B", "4B", "8B"))
BERT = replace(SMALL, architecture="BertModel", context_tokens=512)


def kept(plan: MemoryPlan, context_bytes: int = GIB) -> float:
    """What SGLang leaves to weights and KV cache: its fraction, of what it measures as free."""
    return plan.fraction * (plan.free_bytes - context_bytes)


@pytest.mark.parametrize(("what", "name", "plan"), list(plans()))
def test_a_plan_for_an_empty_card_fits_into_it(
    what: str, name: str, plan: MemoryPlan | None
) -> None:
    if name.startswith("Qwen/"):
        assert (plan is None) == (what == "16 GB" and name.endswith("-8B"))
    if plan is None:
        return
    assert plan.need_bytes <= plan.free_bytes
    assert 0 < plan.fraction <= MAX_FRACTION
    assert kept(plan) >= plan.weights_bytes + plan.kv_bytes
    assert plan.kv_tokens >= plan.context_tokens + plan.chunked_prefill_tokens
    parts = plan.weights_bytes + plan.kv_bytes + plan.activation_bytes + plan.overhead_bytes
    assert plan.need_bytes == parts


@pytest.mark.parametrize("geometry", KNOWN.values())
def test_plan_never_exceeds_free_memory(geometry: ModelShape) -> None:
    """Whatever a language model on the same card has left."""
    for tenths in range(40, 240, 3):
        try:
            plan = plan_memory(card(24, tenths / 10), geometry, None)
        except StartError:
            continue
        assert plan.need_bytes <= plan.free_bytes, tenths
        assert kept(plan) >= plan.weights_bytes + plan.kv_bytes, tenths
        assert 0 < plan.fraction <= MAX_FRACTION, tenths


def test_a_card_shared_with_a_language_model_gets_no_larger_cache_than_an_empty_one() -> None:
    shared = plan_memory(card(80, 24), MIDDLE, None)
    empty = plan_memory(card(80), MIDDLE, None)
    assert shared.kv_tokens == empty.kv_tokens
    assert shared.need_bytes == empty.need_bytes < 24 * GIB


def test_plan_without_limits_has_no_notes() -> None:
    plan = plan_memory(card(24), MIDDLE, None)
    assert (plan.context_tokens, plan.notes) == (32_768, ())


def test_small_card_shortens_the_context_and_notes_it() -> None:
    plan = plan_memory(card(16), MIDDLE, None)
    assert 16_384 <= plan.context_tokens < 32_768
    assert plan.context_tokens % 1024 == 0
    (note,) = plan.notes
    assert f"{plan.longest_text_tokens:,} tokens" in note
    assert "32,768" in note


def test_requested_context_is_not_shortened() -> None:
    with pytest.raises(StartError) as refused:
        plan_memory(card(16), MIDDLE, 32_000)
    assert "texts of 32,007 tokens need" in refused.value.cause
    assert "14.9 GiB of 14.9 GiB is free on 16 GB card" in refused.value.cause
    most = int(refused.value.advice.split("at most ")[1].split(" ")[0].replace(",", ""))
    assert plan_memory(card(16), MIDDLE, most).longest_text_tokens >= most
    with pytest.raises(StartError):
        plan_memory(card(16), MIDDLE, most + 2048)


def test_text_of_exactly_the_requested_context_fits() -> None:
    plan = plan_memory(card(24), MIDDLE, 8192)
    assert plan.longest_text_tokens == 8192
    assert plan_memory(card(24), MIDDLE, 32_768).context_tokens == MIDDLE.context_tokens


def test_more_context_than_the_model_has_is_refused() -> None:
    with pytest.raises(StartError, match=r"32,769 tokens .* 32,768"):
        plan_memory(card(80), MIDDLE, 32_769)


def test_longer_context_of_the_model_is_used_only_if_requested() -> None:
    model = replace(MIDDLE, context_tokens=40_960)
    assert plan_memory(card(80), model, None).context_tokens == 32_768
    assert plan_memory(card(80), model, 40_000).longest_text_tokens == 40_000


def test_a_model_that_does_not_fit_is_refused_with_the_sum_and_what_would_fit() -> None:
    with pytest.raises(StartError) as refused:
        plan_memory(card(16), LARGE, None)
    for part in ("weights 15.6 GiB", "KV cache", "activations", "the rest"):
        assert part in refused.value.cause
    assert "use Qwen/Qwen3-Embedding-4B, which fits" in refused.value.advice
    assert "Qwen3-Embedding-8B" not in refused.value.advice
    assert "at most" not in refused.value.advice


def test_the_sum_of_a_refusal_adds_up() -> None:
    with pytest.raises(StartError) as refused:
        plan_memory(card(16), LARGE, None)
    words = refused.value.cause.split(" (")[1].split(")")[0].split(", ")
    parts = [float(word.split()[-2]) for word in words]
    whole = float(refused.value.cause.split("need ")[1].split(" GiB")[0])
    assert sum(parts) == pytest.approx(whole, abs=0.11 * len(parts))


def test_no_free_memory_is_refused_without_an_arithmetic_error() -> None:
    for free in (0, 0.5, 1):
        with pytest.raises(StartError):
            plan_memory(card(24, free), SMALL, None)


def test_two_gpus_share_what_one_cannot_hold() -> None:
    with pytest.raises(StartError):
        plan_memory(card(16), LARGE, None)
    plan = plan_memory(card(16), LARGE, None, tp_size=2)
    assert plan.weights_bytes == pytest.approx(LARGE.parameters * 1.02, abs=2)
    assert plan.kv_bytes == plan.kv_tokens * LARGE.kv_bytes_per_token() // 2


def test_quantised_weights_must_fit_unquantised_while_they_load() -> None:
    plan = plan_memory(card(24), LARGE, None, quantization="fp8")
    assert plan.weights_bytes < 10 * GIB
    assert plan.context_tokens == 32_768
    with pytest.raises(StartError, match="need 16.* 15.6 GiB while they load"):
        plan_memory(card(16), LARGE, None, quantization="fp8")


# On an H200 (SGLang 0.5.17, shape of 4B, bfloat16), after all loads of a run of ``make test-gpu``.
MEASURED_BYTES = 17_392 << 20


def test_the_plan_is_an_upper_bound_of_the_measured_memory_within_ten_percent() -> None:
    plan = plan_memory(card(141, capability=HOPPER), MIDDLE, None)
    assert (plan.max_prefill_tokens, plan.context_tokens) == (8192, 32_768)
    assert MEASURED_BYTES < plan.need_bytes < 1.1 * MEASURED_BYTES


@pytest.mark.parametrize("shape", [SMALL, MIDDLE, LARGE])
def test_no_model_has_less_beside_weights_and_cache_than_was_measured(shape: ModelShape) -> None:
    plan = plan_memory(card(141, capability=HOPPER), shape, None)
    measured = plan_memory(card(141, capability=HOPPER), MIDDLE, None)
    beside = MEASURED_BYTES - measured.weights_bytes - measured.kv_bytes
    assert plan.activation_bytes + plan.overhead_bytes > beside


@pytest.mark.parametrize(
    ("how", "capability", "shape"),
    [
        ({}, (8, 0), MIDDLE),
        ({}, (8, 9), MIDDLE),
        ({}, (10, 0), MIDDLE),
        ({}, (12, 0), MIDDLE),
        ({"tp_size": 2}, HOPPER, MIDDLE),
        ({"quantization": "fp8"}, HOPPER, MIDDLE),
        ({"deterministic": True}, HOPPER, MIDDLE),
        ({}, HOPPER, replace(MIDDLE, architecture="LlamaForCausalLM")),
        ({}, HOPPER, replace(MIDDLE, architecture="BertModel")),
    ],
)
def test_what_was_not_measured_keeps_the_bound_from_the_source(
    how: dict[str, Any], capability: tuple[int, int], shape: ModelShape
) -> None:
    plan = plan_memory(card(141, capability=capability), shape, 32_000, **how)
    tokens = max(plan.max_prefill_tokens, plan.context_tokens if shape.is_encoder else 0)
    assert plan.activation_bytes == 8 * tokens * shape.layer_bytes_per_token()


def test_what_an_earlier_start_used_beyond_its_plan_is_added() -> None:
    plain = plan_memory(card(80), MIDDLE, None)
    more = plan_memory(card(80), MIDDLE, None, extra_bytes=3 * GIB)
    assert more.overhead_bytes == plain.overhead_bytes + 3 * GIB
    assert more.need_bytes == plain.need_bytes + 3 * GIB
    assert more.fraction < plain.fraction
    with pytest.raises(StartError):
        plan_memory(card(80, 20), MIDDLE, 32_000, extra_bytes=8 * GIB)


def test_the_total_of_a_plan_that_loads_more_than_it_serves_says_so() -> None:
    plan = plan_memory(card(24), LARGE, 2048, quantization="fp8")
    assert plan.weights_bytes + plan.kv_bytes < plan.need_bytes
    assert plan.reasons()[-1].why.startswith("while the weights are loaded")


def test_an_encoder_is_read_in_one_piece() -> None:
    plan = plan_memory(card(24), BERT, None)
    assert plan.chunked_prefill_tokens == NO_CHUNKS
    assert (plan.context_tokens, plan.max_prefill_tokens) == (512, 4096)


def test_host_memory_plan_leaves_memory_for_other_programs() -> None:
    plan = plan_memory(on_host(32 * GIB, 20 * GIB), SMALL, None)
    assert plan.fraction <= 0.8
    assert kept(plan, 2 * GIB) >= plan.weights_bytes + plan.kv_bytes
    with pytest.raises(StartError) as refused:
        plan_memory(on_host(16 * GIB, 4 * GIB), MIDDLE, None)
    assert "nvidia-smi" not in str(refused.value)


def test_a_refusal_on_a_cpu_says_how_much_of_the_free_memory_may_be_used() -> None:
    with pytest.raises(StartError) as refused:
        plan_memory(on_host(int(23.5 * GIB), 13 * GIB), MIDDLE, 8192)
    facts = refused.value.cause
    amounts = {
        name: float(facts.split(name)[1].split(" GiB")[0])
        for name in ("need ", "only ", "weights ", "KV cache ", "may take ")
    }
    assert amounts["need "] < amounts["only "]
    assert amounts["weights "] + amounts["KV cache "] >= amounts["may take "]


def test_batches_are_larger_only_on_large_cards() -> None:
    batches = [plan_memory(card(size), SMALL, None).max_prefill_tokens for size in SIZES_GIB]
    assert batches == [4096, 4096, 4096, 4096, 8192]


def test_figures_have_reasons() -> None:
    reasons = plan_memory(card(24), MIDDLE, None).reasons()
    assert [reason.what.rsplit(" ", 2)[0] for reason in reasons] == [
        *("weights", "KV cache", "activations", "overhead", "memory"),
    ]
    assert all(reason.why and not reason.why.endswith(".") for reason in reasons)
    assert "40,960 tokens" in reasons[1].why


def test_spreading_over_gpus_costs_something_on_each() -> None:
    assert on_gpu(card(24), 2).context_bytes > on_gpu(card(24)).context_bytes


@pytest.mark.parametrize("quantization", [None, "fp8"])
@pytest.mark.parametrize("geometry", [SMALL, MIDDLE, LARGE])
def test_what_was_used_beyond_the_plan_is_added_to_whatever_is_largest(
    geometry: ModelShape, quantization: str | None
) -> None:
    plain, larger = (
        plan_memory(card(48), geometry, 2048, quantization=quantization, extra_bytes=extra)
        for extra in (0, GIB)
    )
    assert larger.need_bytes == plain.need_bytes + GIB


def test_loading_is_the_largest_of_a_quantised_model_with_short_texts() -> None:
    plan = plan_memory(card(48), LARGE, 2048, quantization="fp8")
    parts = plan.weights_bytes + plan.kv_bytes + plan.activation_bytes + plan.overhead_bytes
    assert plan.need_bytes > parts

"""GPUs to plan for, and the tables that the documentation shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from emberd.engines import Launch
from emberd.engines.gpus import Gpu, empty_card
from emberd.engines.model_shape import KNOWN
from emberd.engines.sglang.command import CPU, flags
from emberd.engines.sglang.memory import GIB, Load, MemoryPlan, on_gpu, plan_memory
from emberd.engines.sglang.shared_gpu import Sharer, plan_shared
from emberd.engines.sglang.support import GENERATIONS
from emberd.errors import StartError
from emberd.settings import ServerSpec, StartOptions

SIZES_GIB = (16, 24, 40, 48, 80)
_LEFT_OUT_GIB = 40  # the sizes that are left are those of ``emberd up --estimate``
HOPPER = (9, 0)
# Of each card its name, its size and its compute capability.
CARDS = (
    *((f"{size} GB", size, (8, 6)) for size in SIZES_GIB),
    *((f"{size} GB Hopper", size, HOPPER) for size in (80, 141)),
)
_CPU_ONLY = ("--attention-backend", "--watchdog-timeout")

# Of each generation: the attention kernels that SGLang chooses, from
# srt/arg_groups/model_override_base.py, and why emberd keeps that choice. None was tested on a GPU.
KERNELS = {
    (12, 0): (
        "flashinfer or triton",
        "SGLang's choice for compute capability 12; the datacentre kernels do not run there",
    ),
    (10, 0): (
        "trtllm_mha",
        "SGLang's choice; it raises the page size, of which the figures are multiples",
    ),
    (9, 0): (
        "fa3",
        (
            "SGLang's choice; the path without a KV cache, for which chunked prefill must be off, "
            "is not used: it returned NaN for short texts up to 0.5.12 and is untested here"
        ),
    ),
    (8, 9): ("flashinfer, else triton", "SGLang's choice"),
    (8, 0): ("flashinfer, else triton", "SGLang's choice"),
}

HEAD = (
    (
        "| card | model | weights | KV cache | activations | overhead | needed | fraction | "
        "context | batch |"
    ),
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
)


def card(
    size_gib: float, free_gib: float | None = None, capability: tuple[int, int] = (8, 6)
) -> Gpu:
    """Return a GPU of this nominal size, empty unless told otherwise."""
    empty = replace(empty_card(size_gib, capability), uuid="GPU-0", name=f"{size_gib} GB card")
    return empty if free_gib is None else replace(empty, free_bytes=int(free_gib * GIB))


def plans() -> Iterator[tuple[str, str, MemoryPlan | None]]:
    """Yield card, model, and plan; None where the model does not fit."""
    for what, size, capability in CARDS:
        for name, geometry in KNOWN.items():
            try:
                gpu = card(size, capability=capability)
                yield what, name, plan_memory(gpu, geometry, None)
            except StartError:
                yield what, name, None


def table() -> str:
    """Return the plans of empty cards as Markdown."""
    embedding = (found for found in plans() if not KNOWN[found[1]].reranks)
    return "\n".join((*HEAD, *(_row(*found) for found in embedding)))


def _row(what: str, name: str, plan: MemoryPlan | None) -> str:
    model = name.rpartition("-")[2]
    if plan is None:
        return f"| {what} | {model} | does not fit | | | | | | | |"
    kv = f"{_gib(plan.kv_bytes)} ({plan.kv_tokens:,} tokens)"
    return (
        f"| {what} | {model} | {_gib(plan.weights_bytes)} | {kv} | "
        f"{_gib(plan.activation_bytes)} | {_gib(plan.overhead_bytes)} | "
        f"{_gib(plan.need_bytes)} | {plan.fraction:.3f} | {plan.context_tokens:,} | "
        f"{plan.max_prefill_tokens:,} |"
    )


def shared_table() -> str:
    """Return the plans of an embedding model and a reranker on one empty card, as Markdown."""
    names = ("card", "models", "embedding model", "reranker", "together", "KV cache of each")
    head = f"| {' | '.join((*names, 'longest text'))} |"
    rows = [
        _shared_row(what, card(size, capability=capability), billions)
        for what, size, capability in CARDS
        if size != _LEFT_OUT_GIB
        for billions in ("0.6B", "4B", "8B")
    ]
    return "\n".join((head, "| --- " * head.count(" | ") + "| --- |", *rows))


def _shared_row(what: str, gpu: Gpu, size: str) -> str:
    names = (f"Qwen/Qwen3-Embedding-{size}", f"Qwen/Qwen3-Reranker-{size}")
    first, second = (Sharer(name, Load(on_gpu(gpu), KNOWN[name])) for name in names)
    both = f"| {what} | {size} + {size} |"
    try:
        plans = plan_shared(first, [second]), plan_shared(second, [first])
    except StartError:
        return f"{both} do not fit | | | | |"
    needs = [plan.need_bytes for plan in plans]
    [tokens] = {plan.kv_tokens for plan in plans}
    [longest] = {plan.longest_text_tokens for plan in plans}
    sizes = " | ".join(map(_gib, (*needs, sum(needs))))
    return f"{both} {sizes} | {tokens:,} tokens | {longest:,} tokens |"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}"


def flags_table() -> str:
    """Return every word that can be said, with its reason, as Markdown."""
    name, geometry = list(KNOWN.items())[1]
    spec = ServerSpec(name, revision="COMMIT")
    options = StartOptions(tp_size=2, dp_size=2)
    launch = Launch(30_000, "KEY", "START-ID", "FOLDER", options, home="/home-of-it")
    memory = plan_memory(card(24), geometry, None)
    on_gpu = flags(spec, launch, memory, "FILE")
    on_cpu = flags(replace(spec, device=CPU), launch, memory, "FILE")
    everything = (*on_gpu, *(flag for flag in on_cpu if flag.words[0] in _CPU_ONLY))
    rows = [f"| `{' '.join(flag.words)}` | {flag.why} |" for flag in everything]
    return "\n".join(("| words | why |", "| --- | --- |", *rows))


def generations_table() -> str:
    """Return what is particular to each generation of GPUs, as Markdown."""
    rows = [
        f"| {name} | {'.'.join(map(str, capability))} | {' | '.join(KERNELS[capability])} |"
        for capability, name in GENERATIONS.items()
    ]
    head = ("| generation | from | kernels that SGLang chooses | why it is left so |",)
    return "\n".join((*head, "| --- | --- | --- | --- |", *rows))

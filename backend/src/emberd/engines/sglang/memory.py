"""How much memory a server will take on its device, and which figures to give SGLang for it.

SGLang is told how many tokens its KV cache may hold, so that a card can be shared with a language
model; its own formula would take nearly all of what is free. None of this has run on a GPU: the
arithmetic is compared with SGLang's own, and the constants are upper bounds read from its source.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from emberd.engines.base import Reason
from emberd.engines.gpus import Gpu
from emberd.engines.model_shape import KNOWN, Geometry
from emberd.errors import StartError

GIB: Final = 1 << 30
MAX_FRACTION: Final = 0.95
MIN_CONTEXT_TOKENS: Final = 2048
"""A server for less is refused: texts of a page would not fit."""

NO_CHUNKS: Final = -1
"""SGLang's word for prefill in one piece."""

_DEFAULT_CONTEXT_TOKENS: Final = 32_768  # the model card's; more has to be asked for
_PAGE_TOKENS: Final = 128  # the largest page of any attention backend
_STEP_TOKENS: Final = 1024
# A text must be shorter than the context (srt/managers/tokenizer_manager.py), and by seven by
# another check (srt/managers/tp_worker.py and utils.py), whose verdict 0.5.23 forgets for
# embeddings: there 4,102 tokens pass a context of 4,103. For the same reason a text that does not
# fit into the KV cache is not refused but waits, so the cache is never smaller than the context.
_REFUSED_TAIL_TOKENS: Final = 7

# SGLang's own chunks by the card (srt/arg_groups/memory_hook.py), down to the smallest.
_LARGE_CARD_BYTES: Final = 60 * GIB
_LARGE_BATCHES: Final = (8192, 4096, 2048)
_BATCHES: Final = (4096, 2048)
_BATCHES_HELD: Final = 2  # the next is scheduled while one runs

_LAYERS_ALIVE: Final = 8  # one is by the shapes; the rest is for fragments and captured graphs
_WEIGHTS_SLACK: Final = 1.02  # the allocator's blocks, rotary tables
# SGLang makes from 2,048 to 4,096 rows of a table of requests, each as long as the context, of
# four bytes a place (srt/mem_cache/kv_cache_configurator.py, resolve_max_num_reqs).
_TABLE_ROW_BYTES: Final = 2048 * 4
_TABLE_KV_SHARE: Final = 4
_FRACTION_STEPS: Final = 1000

_CUDA_BYTES: Final = 1 * GIB  # the driver's context, cuBLAS, modules of kernels
_LINKS_BYTES: Final = GIB // 2  # NCCL, where a model is spread over GPUs
# srt/layers/attention/flashinfer_backend.py, for Qwen3; trtllm_mha_backend.py has the same.
_WORKSPACE_BYTES: Final = GIB // 2
# 8 MiB for each captured length (srt/arg_groups/memory_hook.py), of which 8,192 tokens have 58.
_GRAPHS_BYTES: Final = GIB // 2

_PROCESSES_BYTES: Final = 2 * GIB  # four Python processes, three with torch
_MAX_HOST_FRACTION: Final = 0.8  # other programs come and go in the memory of a machine


@dataclass(frozen=True, slots=True)
class Device:
    """What a plan must fit into.

    Attributes:
        name: For people.
        total_bytes: All of its memory.
        free_bytes: What can be had now.
        context_bytes: What the process takes of it before SGLang measures what is free.
        fixed_bytes: Workspaces and captured graphs.
        max_fraction: Most of the free memory that SGLang may plan with.
        remedies: What to do when it is too little.
    """

    name: str
    total_bytes: int
    free_bytes: int
    context_bytes: int
    fixed_bytes: int
    max_fraction: float = MAX_FRACTION
    remedies: tuple[str, ...] = (
        "Free some of it (nvidia-smi names who holds it)",
        "use another GPU",
    )


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a server will take of one device, and the figures that make it so.

    Attributes:
        device: Name of the device.
        free_bytes: What was free on it.
        weights_bytes: The weights, with 2 % for blocks that are not filled.
        kv_tokens: Tokens whose keys and values can be held, for ``--max-total-tokens``.
        kv_bytes: What they take.
        activation_bytes: What one batch takes while it runs.
        overhead_bytes: CUDA, workspaces, captured graphs, the table of requests.
        need_bytes: All of these together.
        fraction: For ``--mem-fraction-static``: of what is free at the start, not of the card.
        chunked_prefill_tokens: For ``--chunked-prefill-size``; ``NO_CHUNKS`` for encoders.
        max_prefill_tokens: For ``--max-prefill-tokens``.
        context_tokens: For ``--context-length``.
        notes: What whoever uses the server should know.
    """

    device: str
    free_bytes: int
    weights_bytes: int
    kv_tokens: int
    kv_bytes: int
    activation_bytes: int
    overhead_bytes: int
    need_bytes: int
    fraction: float
    chunked_prefill_tokens: int
    max_prefill_tokens: int
    context_tokens: int
    notes: tuple[str, ...] = ()

    @property
    def longest_text_tokens(self) -> int:
        """The longest text that such a server takes, end-of-text token included."""
        return self.context_tokens - _REFUSED_TAIL_TOKENS

    def reasons(self) -> tuple[Reason, ...]:
        """Return the figures with their reasons, for people."""
        return (
            Reason(f"weights {_gib(self.weights_bytes)}", "the model's numbers, and 2 %"),
            Reason(
                f"KV cache {_gib(self.kv_bytes)}",
                f"{self.kv_tokens:,} tokens: the longest text and the batches under way; nothing "
                f"is kept between requests",
            ),
            Reason(
                f"activations {_gib(self.activation_bytes)}",
                f"an upper bound for batches of {self.max_prefill_tokens:,} tokens",
            ),
            Reason(
                f"overhead {_gib(self.overhead_bytes)}",
                "an upper bound for the runtime, workspaces, graphs and the table of requests",
            ),
            Reason(
                f"memory {_gib(self.need_bytes)}",
                f"all of these, of {_gib(self.free_bytes)} free on {self.device}",
            ),
        )


@dataclass(frozen=True, slots=True)
class _Load:
    """What a model asks of one device, by the token."""

    geometry: Geometry
    weights_bytes: int
    loading_bytes: int
    kv_bytes: int
    layer_bytes: int

    def plan(self, device: Device, context: int, batch: int, kv_tokens: int) -> MemoryPlan | None:
        """Return the plan with these figures, or None when it does not fit."""
        kv_tokens = -(-kv_tokens // _PAGE_TOKENS) * _PAGE_TOKENS
        kv_bytes = kv_tokens * self.kv_bytes
        activation = self.activation_bytes(batch, context)
        overhead = device.context_bytes + device.fixed_bytes + _table_bytes(context, kv_tokens)
        need = self.need(device, context, batch, kv_tokens)
        # SGLang measures what is free after its context is made, and takes the fraction of that.
        measured = device.free_bytes - device.context_bytes
        rest = activation + overhead - device.context_bytes
        fraction = _fraction(measured, rest, device.max_fraction)
        if fraction * measured < self.weights_bytes + kv_bytes or need > device.free_bytes:
            return None
        chunk = NO_CHUNKS if self.geometry.is_encoder else batch
        return MemoryPlan(
            device=device.name,
            free_bytes=device.free_bytes,
            weights_bytes=self.weights_bytes,
            kv_tokens=kv_tokens,
            kv_bytes=kv_bytes,
            activation_bytes=activation,
            overhead_bytes=overhead,
            need_bytes=need,
            fraction=fraction,
            chunked_prefill_tokens=chunk,
            max_prefill_tokens=batch,
            context_tokens=context,
        )

    def need(self, device: Device, context: int, batch: int, kv_tokens: int) -> int:
        """Return the most that is taken at any time, in bytes."""
        serving = (
            self.weights_bytes
            + kv_tokens * self.kv_bytes
            + self.activation_bytes(batch, context)
            + device.fixed_bytes
            + _table_bytes(context, kv_tokens)
        )
        return device.context_bytes + max(serving, self.loading_bytes)

    def activation_bytes(self, batch: int, context: int) -> int:
        # Without chunks a text longer than a batch runs alone, and whole.
        tokens = max(batch, context) if self.geometry.is_encoder else batch
        return tokens * self.layer_bytes * _LAYERS_ALIVE


def plan_memory(
    device: Gpu | Device,
    geometry: Geometry,
    wanted_context: int | None,
    *,
    tp_size: int = 1,
    quantization: str | None = None,
    dtype: str | None = None,
) -> MemoryPlan:
    """Return what a server takes of a device; of the one with the least free if there are many.

    Args:
        device: Where the model is to run.
        geometry: What is to run.
        wanted_context: Longest text that must fit, in tokens; None for as long as the model card
            says, or less where less fits.
        tp_size: GPUs over which one copy of the model is spread.
        quantization: Quantisation of the weights; None for none.
        dtype: Number format; None for bfloat16.

    Raises:
        StartError: It does not fit; the text has the sum, and the advice says what would.
    """
    room = on_gpu(device, tp_size) if isinstance(device, Gpu) else device
    load = _load(geometry, tp_size, quantization, dtype)
    context = _context(geometry, wanted_context)
    batches = _LARGE_BATCHES if room.total_bytes >= _LARGE_CARD_BYTES else _BATCHES
    for batch in batches:
        if plan := load.plan(room, context, batch, context + _BATCHES_HELD * batch):
            return plan
    smallest = batches[-1]
    if plan := load.plan(room, context, smallest, context + smallest):
        return plan
    return _shortened(load, room, wanted_context, smallest)


def on_gpu(gpu: Gpu, tp_size: int = 1) -> Device:
    """Return a GPU as what a plan must fit into."""
    links = _LINKS_BYTES if tp_size > 1 else 0
    return Device(
        name=gpu.name,
        total_bytes=gpu.total_bytes,
        free_bytes=gpu.free_bytes,
        context_bytes=_CUDA_BYTES + links,
        fixed_bytes=_WORKSPACE_BYTES + _GRAPHS_BYTES,
    )


def on_host(total_bytes: int, free_bytes: int) -> Device:
    """Return this machine's own memory as what a plan must fit into."""
    return Device(
        name="this machine",
        total_bytes=total_bytes,
        free_bytes=free_bytes,
        context_bytes=_PROCESSES_BYTES,
        fixed_bytes=0,
        max_fraction=_MAX_HOST_FRACTION,
        remedies=("Free some of it",),
    )


def _load(geometry: Geometry, tp_size: int, quantization: str | None, dtype: str | None) -> _Load:
    share = _WEIGHTS_SLACK / tp_size
    return _Load(
        geometry=geometry,
        weights_bytes=math.ceil(geometry.weights_bytes(dtype, quantization) * share),
        # Weights are quantised on the device when all of them are there.
        loading_bytes=math.ceil(geometry.weights_bytes(dtype) * share),
        kv_bytes=geometry.kv_bytes_per_token(dtype, tp_size),
        layer_bytes=geometry.layer_bytes_per_token(dtype),
    )


def _context(geometry: Geometry, wanted: int | None) -> int:
    limit = geometry.context_tokens
    if wanted is None:
        return min(limit, _DEFAULT_CONTEXT_TOKENS)
    if wanted > limit:
        raise StartError(
            f"a context of {wanted:,} tokens was asked for, and the model's is {limit:,}",
            advice="Ask for no more than that.",
        )
    # So that a text of just so many tokens is taken; a model's own limit may not be passed.
    return min(limit, wanted + _REFUSED_TAIL_TOKENS)


def _table_bytes(context: int, kv_tokens: int) -> int:
    return _TABLE_ROW_BYTES * (max(context, kv_tokens // _TABLE_KV_SHARE) + _PAGE_TOKENS)


def _fraction(measured_bytes: int, rest_bytes: int, most: float) -> float:
    """Return all that may be static, rounded down: it leaves ``rest_bytes`` to the others."""
    if measured_bytes <= 0:
        return 0.0
    steps = math.floor((1 - rest_bytes / measured_bytes) * _FRACTION_STEPS)
    return max(0.0, min(most, steps / _FRACTION_STEPS))


def _shortened(load: _Load, device: Device, wanted: int | None, batch: int) -> MemoryPlan:
    full = _context(load.geometry, wanted)
    context = full // _STEP_TOKENS * _STEP_TOKENS
    plan = None
    while plan is None and context >= MIN_CONTEXT_TOKENS:
        plan = load.plan(device, context, batch, context + batch)
        context -= _STEP_TOKENS
    if plan is None or wanted is not None:
        raise _refused(load, device, (full, batch), plan)
    note = (
        f"texts of up to {plan.longest_text_tokens:,} tokens fit on {device.name}, not of the "
        f"{full:,} that the model can read: {_gib(device.free_bytes)} is free, and "
        f"{_gib(load.need(device, full, batch, full + batch))} would be needed"
    )
    return replace(plan, notes=(note,))


def _refused(
    load: _Load, device: Device, figures: tuple[int, int], shorter: MemoryPlan | None
) -> StartError:
    full, batch = figures
    context = full if shorter else min(full, MIN_CONTEXT_TOKENS)
    kv_tokens = context + batch
    rest = device.context_bytes + device.fixed_bytes + _table_bytes(context, kv_tokens)
    loading = load.loading_bytes
    more = f", {_gib(loading)} while they load" if loading > load.weights_bytes else ""
    cause = (
        f"texts of {context:,} tokens need {_gib(load.need(device, context, batch, kv_tokens))} "
        f"(weights {_gib(load.weights_bytes)}{more}, KV cache {_gib(kv_tokens * load.kv_bytes)}, "
        f"activations {_gib(load.activation_bytes(batch, context))}, the rest {_gib(rest)}), and "
        f"{_gib(device.free_bytes)} of {_gib(device.total_bytes)} is free on {device.name}"
    )
    return StartError(cause, advice=_advice(load.geometry, device, shorter))


def _advice(geometry: Geometry, device: Device, shorter: MemoryPlan | None) -> str:
    ways = list(device.remedies)
    if shorter:
        ways.append(f"ask for a context of at most {shorter.longest_text_tokens:,} tokens")
    for name, other in KNOWN.items():
        load = _load(other, 1, None, None)
        kv_tokens = MIN_CONTEXT_TOKENS + _BATCHES[-1]
        fits = load.plan(device, MIN_CONTEXT_TOKENS, _BATCHES[-1], kv_tokens)
        if fits and other.parameters < geometry.parameters:
            ways.append(f"ask for {name}, which fits, with an index of its own")
    return ", or ".join(ways) + "."


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"

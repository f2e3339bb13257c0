"""The memory that a server takes on its device, and the figures that SGLang gets for it.

emberd limits the number of tokens in SGLang's KV cache, so that a card can be shared with a
language model; SGLang's own formula takes nearly all free memory. The arithmetic is
compared with SGLang's, and the constants are upper bounds from its source. One of them is
calibrated on a measurement, for the kind of server that was measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from emberd.engines.base import MemoryNeed, Reason
from emberd.engines.gpus import Gpu
from emberd.engines.model_shape import KNOWN, ModelShape
from emberd.errors import StartError

GIB: Final = 1 << 30
MAX_FRACTION: Final = 0.95
MIN_CONTEXT_TOKENS: Final = 2048
"""A shorter context is refused, because a text of one page would not fit."""

NO_CHUNKS: Final = -1
"""SGLang's value for prefill without chunks."""

_DEFAULT_CONTEXT_TOKENS: Final = 32_768  # the model card's; a longer one must be requested
_PAGE_TOKENS: Final = 128  # the largest page of any attention backend
_STEP_TOKENS: Final = 1024
# A text must be shorter than the context (srt/managers/tokenizer_manager.py), and seven tokens
# shorter by another check (srt/managers/tp_worker.py and utils.py), whose result 0.5.23 ignores for
# embeddings: there 4,102 tokens pass a context of 4,103. For the same reason a text that does not
# fit into the KV cache is not refused but waits, so the cache is never smaller than the context.
_REFUSED_TAIL_TOKENS: Final = 7

# SGLang's chunk sizes for the size of the card (srt/arg_groups/memory_hook.py), down to the
# smallest.
_LARGE_CARD_BYTES: Final = 60 * GIB
SMALLEST_BATCH_TOKENS: Final = 2048
_LARGE_BATCHES: Final = (8192, 4096, SMALLEST_BATCH_TOKENS)
_BATCHES: Final = (4096, SMALLEST_BATCH_TOKENS)
# SGLang itself makes none so small: only if texts would become shorter than this otherwise.
_LEAST_BATCH_TOKENS: Final = 1024
_SHORT_CONTEXT_TOKENS: Final = 8192

_BATCHES_HELD: Final = 2  # one runs while the next is scheduled

# Layers whose widest tensors are counted: one by the shapes, the rest for fragmentation and
# captured graphs. Eight is a bound that was not measured.
_LAYERS_ALIVE: Final = 8
# One measurement (H200, SGLang 0.5.17, shape of Qwen3-Embedding-4B, bfloat16, batches of 8,192
# tokens, fa3 kernels): 17,392 MiB were used after all loads, 2.6 GiB of it beside weights and KV
# cache. With eight layers 6.5 GiB were planned for that, with three it is 3.8. The overhead is not
# calibrated: the measurement does not separate it from the activations, and the KV cache and the
# weights are computed. Used only for the kind of server that was measured (``is_measured``).
_LAYERS_ALIVE_MEASURED: Final = 3
_MEASURED_MAJOR: Final = 9  # compute capability of Hopper, where SGLang chooses fa3
_MEASURED_ARCHITECTURES: Final = ("Qwen3ForCausalLM", "Qwen3Model")
_WEIGHTS_SLACK: Final = 1.02  # the allocator's blocks, rotary tables
# SGLang makes a table of requests with 2,048 to 4,096 rows, each as long as the context, of four
# bytes per entry (srt/mem_cache/kv_cache_configurator.py, resolve_max_num_reqs).
_TABLE_ROW_BYTES: Final = 2048 * 4
_TABLE_KV_SHARE: Final = 4
_FRACTION_STEPS: Final = 1000

_CUDA_BYTES: Final = 1 * GIB  # the driver's context, cuBLAS, modules of kernels
_LINKS_BYTES: Final = GIB // 2  # NCCL, where a model is spread over GPUs
# srt/layers/attention/flashinfer_backend.py, for Qwen3; trtllm_mha_backend.py has the same size.
_WORKSPACE_BYTES: Final = GIB // 2
# 8 MiB for each captured length (srt/arg_groups/memory_hook.py); 8,192 tokens have 58 of them.
_GRAPHS_BYTES: Final = GIB // 2

_PROCESSES_BYTES: Final = 2 * GIB  # four Python processes, three with torch
_MAX_HOST_FRACTION: Final = 0.8  # other programs use the memory of a machine too


@dataclass(frozen=True, slots=True)
class Device:
    """The memory that a plan must fit into.

    Attributes:
        name: For display.
        total_bytes: All of its memory.
        free_bytes: Memory that is free now.
        context_bytes: What the process takes before SGLang measures what is free.
        fixed_bytes: Workspaces and captured graphs.
        extra_bytes: What an earlier start here used beyond its plan, at any time.
        is_measured: Whether it is one GPU of the kind on which the activations were measured.
        max_fraction: Largest fraction of the free memory that SGLang may plan with.
        remedies: What to do if it is too little.
    """

    name: str
    total_bytes: int
    free_bytes: int
    context_bytes: int
    fixed_bytes: int
    extra_bytes: int = 0
    is_measured: bool = False
    max_fraction: float = MAX_FRACTION
    remedies: tuple[str, ...] = (
        "Free some of it (nvidia-smi lists the processes that hold it)",
        "use another GPU",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan(MemoryNeed):
    """The memory that a server takes on one device, and SGLang's figures for it.

    Attributes:
        device: Name of the device.
        free_bytes: Memory that was free on it.
        kv_tokens: Tokens that the KV cache holds, for ``--max-total-tokens``.
        fraction: For ``--mem-fraction-static``: of what is free at the start, not of the card.
        chunked_prefill_tokens: For ``--chunked-prefill-size``; ``NO_CHUNKS`` for encoders.
        max_prefill_tokens: For ``--max-prefill-tokens``.
        max_prefill_prompts: For ``--prefill-max-requests``; None for no limit.
        context_tokens: For ``--context-length``.
        left: What is left free for other servers, a figure and its reason each.
    """

    device: str
    free_bytes: int
    kv_tokens: int
    fraction: float
    chunked_prefill_tokens: int
    max_prefill_tokens: int
    max_prefill_prompts: int | None
    context_tokens: int
    left: tuple[Reason, ...] = ()

    @property
    def loaded_bytes(self) -> int:
        """What a server has taken for certain once it is ready: all but its batches."""
        return min(self.need_bytes, self.weights_bytes + self.kv_bytes + self.overhead_bytes)

    def reasons(self) -> tuple[Reason, ...]:
        """Return the figures with their reasons, for display."""
        parts = self.weights_bytes + self.kv_bytes + self.activation_bytes + self.overhead_bytes
        return (
            Reason(f"weights {in_gib(self.weights_bytes)}", "the model's parameters, and 2 %"),
            Reason(
                f"KV cache {in_gib(self.kv_bytes)}",
                f"{self.kv_tokens:,} tokens: the longest text and the batches in flight",
            ),
            Reason(
                f"activations {in_gib(self.activation_bytes)}",
                f"an upper bound for batches of {self.max_prefill_tokens:,} tokens",
            ),
            Reason(
                f"overhead {in_gib(self.overhead_bytes)}",
                "an upper bound for the runtime, workspaces, graphs and the table of requests",
            ),
            Reason(
                f"memory {in_gib(self.need_bytes)}",
                f"{'the sum' if self.need_bytes == parts else 'while the weights are loaded'}, of "
                f"{in_gib(self.free_bytes)} free on {self.device}",
            ),
            *self.left,
        )


@dataclass(frozen=True, slots=True)
class Step:
    """One way to serve, of those that a plan tries in order.

    Attributes:
        batch: Tokens of a batch.
        batches: Batches that the KV cache holds beside the longest text.
        context: Longest text in tokens; None for the full context.
    """

    batch: int
    batches: int = 1
    context: int | None = None


class Load:
    """What a model takes on one device, in all and per token."""

    def __init__(
        self,
        device: Device,
        shape: ModelShape,
        wanted_context: int | None = None,
        *,
        tp_size: int = 1,
        quantization: str | None = None,
        deterministic: bool = False,
    ) -> None:
        """See ``plan_memory``, which has the same arguments and raises the same errors."""
        share = _WEIGHTS_SLACK / tp_size
        self.device = device
        self.shape = shape
        self.full = _full_context(shape, wanted_context)
        self.may_shorten = wanted_context is None
        # Deterministic kernels divide a batch into tiles, which have the size of this one.
        self.least_batch = SMALLEST_BATCH_TOKENS if deterministic else _LEAST_BATCH_TOKENS
        # Other kernels (other GPUs, fp8, deterministic ones), several GPUs and other models were
        # not measured. Larger batches neither: ``_LARGE_BATCHES`` has none.
        is_measured = (
            device.is_measured
            and shape.architecture in _MEASURED_ARCHITECTURES
            and quantization is None
            and not deterministic
            and not shape.reranks
        )
        self.layers_alive = _LAYERS_ALIVE_MEASURED if is_measured else _LAYERS_ALIVE
        self.weights_bytes = math.ceil(shape.weights_bytes(quantization) * share)
        # Weights are quantised on the device, after all of them are loaded.
        self.loading_bytes = math.ceil(shape.weights_bytes() * share)
        self.kv_bytes_per_token = shape.kv_bytes_per_token(tp_size)

    def steps(self) -> Iterator[Step]:
        """Yield the ways to serve, the best first.

        If no context was requested, it is shortened before the batches become smaller than SGLang's
        own, but not to less than some pages. So no step has longer texts than one before it: with
        more free memory, texts are never shorter. What comes after a context that was requested
        shows what would fit.
        """
        large = self.device.total_bytes >= _LARGE_CARD_BYTES
        batches = _LARGE_BATCHES if large else _BATCHES
        yield from (Step(batch, _BATCHES_HELD) for batch in batches)
        yield Step(batches[-1])
        longest = self.full // _STEP_TOKENS * _STEP_TOKENS
        contexts = range(longest, MIN_CONTEXT_TOKENS - 1, -_STEP_TOKENS)
        if self.may_shorten:
            usual = (each for each in contexts if each >= _SHORT_CONTEXT_TOKENS)
            yield from (Step(batches[-1], context=context) for context in usual)
        most = _SHORT_CONTEXT_TOKENS if self.may_shorten else self.full
        if self.full <= most:
            yield Step(self.least_batch)
        yield from (Step(self.least_batch, context=each) for each in contexts if each <= most)

    @property
    def least(self) -> Step:
        """The step that needs the least memory."""
        return Step(self.least_batch, context=MIN_CONTEXT_TOKENS if self.may_shorten else None)

    def plan(self, step: Step, free_bytes: int | None = None) -> MemoryPlan | None:
        """Return the plan for a way to serve; None if it does not fit.

        Args:
            step: The way to serve.
            free_bytes: What may be used of the free memory; None for all of it.
        """
        device, context, batch = self.device, self.context_of(step), step.batch
        free = device.free_bytes if free_bytes is None else free_bytes
        kv_tokens = self.kv_tokens(step)
        kv_bytes = kv_tokens * self.kv_bytes_per_token
        activation = self.activation_bytes(batch, context)
        overhead = self.overhead_bytes(context, kv_tokens)
        need = self.need_bytes(step)
        fraction, usable_bytes = self._fraction(step, free)
        if usable_bytes < self.weights_bytes + kv_bytes or need > free:
            return None
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
            chunked_prefill_tokens=NO_CHUNKS if self.shape.is_encoder else batch,
            max_prefill_tokens=batch,
            max_prefill_prompts=self.shape.most_prompts(batch),
            context_tokens=context,
            longest_text_tokens=context - _REFUSED_TAIL_TOKENS,
        )

    def _fraction(self, step: Step, free_bytes: int) -> tuple[float, int]:
        """Return SGLang's fraction for a step, and what that is in bytes for weights and KV cache.

        SGLang measures the free memory after it has made its CUDA context, and uses a fraction of
        that for weights and KV cache, rounded down here. The rest must hold everything else.
        """
        device, context = self.device, self.context_of(step)
        measured = free_bytes - device.context_bytes
        if measured <= 0:
            return 0.0, 0
        overhead = self.overhead_bytes(context, self.kv_tokens(step)) - device.context_bytes
        rest = self.activation_bytes(step.batch, context) + overhead
        steps = math.floor((1 - rest / measured) * _FRACTION_STEPS)
        fraction = max(0.0, min(device.max_fraction, steps / _FRACTION_STEPS))
        return fraction, math.floor(fraction * measured)

    def context_of(self, step: Step) -> int:
        """Return the longest text of a step in tokens."""
        return self.full if step.context is None else min(self.full, step.context)

    def kv_tokens(self, step: Step) -> int:
        """Return the size of the KV cache of a step in tokens."""
        tokens = self.context_of(step) + step.batches * step.batch
        return -(-tokens // _PAGE_TOKENS) * _PAGE_TOKENS

    def need_bytes(self, step: Step) -> int:
        """Return the largest amount that is taken at any time."""
        context, batch, kv_tokens = self.context_of(step), step.batch, self.kv_tokens(step)
        kv_bytes = kv_tokens * self.kv_bytes_per_token
        overhead = self.overhead_bytes(context, kv_tokens)
        serving = self.weights_bytes + kv_bytes + self.activation_bytes(batch, context) + overhead
        device = self.device
        return max(serving, self.loading_bytes + device.context_bytes + device.extra_bytes)

    def activation_bytes(self, batch: int, context: int) -> int:
        """Return what one batch takes while it runs."""
        # Without chunks a text that is longer than a batch runs in one piece.
        tokens = max(batch, context) if self.shape.is_encoder else batch
        layers = tokens * self.shape.layer_bytes_per_token() * self.layers_alive
        return layers + self.shape.logits_bytes(tokens)

    def overhead_bytes(self, context: int, kv_tokens: int) -> int:
        """Return what is taken beside weights, KV cache and batches."""
        rows = max(context, kv_tokens // _TABLE_KV_SHARE) + _PAGE_TOKENS
        device = self.device
        table_bytes = _TABLE_ROW_BYTES * rows
        return device.context_bytes + device.fixed_bytes + device.extra_bytes + table_bytes

    def refusal(self, shorter: MemoryPlan | None) -> StartError:
        """Return the error for a context that does not fit, with the sum and what would fit.

        Args:
            shorter: The plan with the longest context that fits; None if none fits.
        """
        device = self.device
        step = Step(self.least_batch, context=None if shorter else MIN_CONTEXT_TOKENS)
        context, kv_tokens = self.context_of(step), self.kv_tokens(step)
        loading = self.loading_bytes
        more = f", {in_gib(loading)} while they load" if loading > self.weights_bytes else ""
        need = self.need_bytes(step)
        cause = (
            f"texts of {context:,} tokens need {in_gib(need)} "
            f"(weights {in_gib(self.weights_bytes)}{more}, "
            f"KV cache {in_gib(kv_tokens * self.kv_bytes_per_token)}, "
            f"activations {in_gib(self.activation_bytes(step.batch, context))}, "
            f"the rest {in_gib(self.overhead_bytes(context, kv_tokens))}), but only "
            f"{in_gib(device.free_bytes)} of {in_gib(device.total_bytes)} is free on {device.name}"
        )
        if need <= device.free_bytes:
            usable_bytes = self._fraction(step, device.free_bytes)[1]
            cause += f", of which weights and KV cache may take {in_gib(usable_bytes)}"
        ways = list(device.remedies)
        if shorter:
            ways.append(f"request a context of at most {shorter.longest_text_tokens:,} tokens")
        for name, other in KNOWN.items():
            is_smaller = other.parameters < self.shape.parameters
            if not is_smaller or other.reranks != self.shape.reranks:
                continue
            if (smaller := Load(device, other)).plan(smaller.least):
                index = "" if other.reranks else " (it needs its own index)"
                ways.append(f"use {name}, which fits{index}")
        return StartError(cause, advice=", or ".join(ways) + ".")


def plan_memory(
    device: Gpu | Device,
    shape: ModelShape,
    wanted_context: int | None,
    *,
    tp_size: int = 1,
    quantization: str | None = None,
    deterministic: bool = False,
    extra_bytes: int = 0,
) -> MemoryPlan:
    """Return what a server takes on a device; with several GPUs, on the one with the least free.

    Args:
        device: Where the model will run.
        shape: The model's shape.
        wanted_context: Longest text that must fit, in tokens; None for the model card's limit, or
            less if that does not fit.
        tp_size: GPUs over which one copy of the model is spread.
        quantization: Quantisation of the weights; None for none.
        deterministic: Whether SGLang computes with its deterministic kernels.
        extra_bytes: What an earlier start here used beyond its plan (``gpu_usage``).

    Raises:
        StartError: It does not fit; the message has the sum, and the advice says what would fit.
    """
    if isinstance(device, Gpu):
        device = on_gpu(device, tp_size)
    load = Load(
        replace(device, extra_bytes=extra_bytes),
        shape,
        wanted_context,
        tp_size=tp_size,
        quantization=quantization,
        deterministic=deterministic,
    )
    steps = list(load.steps())
    step, plan = next(((step, plan) for step in steps if (plan := load.plan(step))), (None, None))
    is_shortened = step is not None and step.context is not None
    if plan is None or (is_shortened and not load.may_shorten):
        raise load.refusal(plan)
    return replace(plan, notes=(shortened_note(load, plan),)) if is_shortened else plan


def shortened_note(load: Load, plan: MemoryPlan, beside: Sequence[str] = ()) -> str:
    """Return the note that a plan limits texts to less than the model's context.

    Args:
        load: The model.
        plan: Its plan.
        beside: Models whose servers are to fit on the same device.
    """
    full, device = load.full, load.device
    others = f" beside {' and '.join(beside)}" if beside else ""
    return (
        f"texts of up to {plan.longest_text_tokens:,} tokens fit on {device.name}{others}, not the "
        f"model's {full:,}: {in_gib(device.free_bytes)} is free, but "
        f"{in_gib(load.need_bytes(Step(plan.max_prefill_tokens)))} would be needed"
        f"{' for this model' if beside else ''}"
    )


def _full_context(shape: ModelShape, wanted: int | None) -> int:
    """Return the context that a server gets if it fits.

    Raises:
        StartError: The model does not have the context that was requested.
    """
    limit = shape.context_tokens
    if wanted is None:
        return min(limit, _DEFAULT_CONTEXT_TOKENS)
    if wanted > limit:
        raise StartError(
            f"a context of {wanted:,} tokens was requested, but the model's limit is {limit:,}",
            advice=f"Request a context of at most {limit:,} tokens.",
        )
    # So that a text of exactly that length is accepted. The model's limit must not be exceeded.
    return min(limit, wanted + _REFUSED_TAIL_TOKENS)


def on_gpu(gpu: Gpu, tp_size: int = 1) -> Device:
    """Return the memory of a GPU."""
    return Device(
        name=gpu.name,
        total_bytes=gpu.total_bytes,
        free_bytes=gpu.free_bytes,
        context_bytes=_CUDA_BYTES + (_LINKS_BYTES if tp_size > 1 else 0),
        fixed_bytes=_WORKSPACE_BYTES + _GRAPHS_BYTES,
        is_measured=gpu.capability[0] == _MEASURED_MAJOR and tp_size == 1,
    )


def on_host(total_bytes: int, free_bytes: int) -> Device:
    """Return the memory of this machine."""
    return Device(
        name="this machine",
        total_bytes=total_bytes,
        free_bytes=free_bytes,
        context_bytes=_PROCESSES_BYTES,
        fixed_bytes=0,
        max_fraction=_MAX_HOST_FRACTION,
        remedies=("Free some of it",),
    )


def in_gib(size: int) -> str:
    """Return a number of bytes in GiB, for display."""
    return f"{size / GIB:.1f} GiB"

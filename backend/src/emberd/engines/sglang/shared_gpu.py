"""The memory of servers that share a GPU: one plan for all, and who holds what is missing.

Servers that are to share a GPU are planned together: all take the same step (``Load.steps``), the
first at which the sum of what they need fits. What remains is divided equally. So no server gets
long texts at the expense of another. With several GPUs, all are placed, the largest first
(``place``). So the order of their starts does not matter.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from emberd.engines.base import Reason
from emberd.engines.gpu_usage import GpuServer
from emberd.engines.gpus import Gpu, freest
from emberd.engines.model_shape import KNOWN, ModelShape
from emberd.engines.sglang.memory import (
    Load,
    MemoryPlan,
    Step,
    in_gib,
    shortened_note,
)
from emberd.errors import StartError

_LEAST_NAMED_BYTES: Final = 1 << 28


@dataclass(frozen=True, slots=True)
class Sharer:
    """A model that is to share a GPU.

    Attributes:
        model: Its name.
        load: What it takes.
    """

    model: str
    load: Load


LoadOf = Callable[[ModelShape, Gpu], Load]
"""Returns what a model of a shape takes on a GPU, with the options of the start."""


def plan_shared(own: Sharer, others: Sequence[Sharer]) -> MemoryPlan:
    """Return the plan of a server that leaves memory for others on the same device.

    Args:
        own: The model that is started.
        others: Models whose servers will be started on that device; at least one.

    Raises:
        StartError: They do not fit together; the message has their sums.
    """
    sharers, device = [own, *others], own.load.device
    for step in _common_steps(sharers):
        needs = [sharer.load.need_bytes(_for(sharer.load, step)) for sharer in sharers]
        spare = (device.free_bytes - sum(needs)) // len(sharers)
        if spare < 0:
            continue
        plans = [
            sharer.load.plan(_for(sharer.load, step), need + spare)
            for sharer, need in zip(sharers, needs, strict=True)
        ]
        if (plan := plans[0]) is None or None in plans:
            continue
        names = [sharer.model for sharer in others]
        is_shortened = plan.context_tokens < own.load.full
        return replace(
            plan,
            free_bytes=device.free_bytes,
            left=tuple(
                Reason(f"left free {in_gib(need)}", f"for a server of {sharer.model}")
                for sharer, need in zip(others, needs[1:], strict=True)
            ),
            notes=(shortened_note(own.load, plan, names),) if is_shortened else (),
        )
    raise _refusal(sharers)


def place(
    models: Mapping[str, ModelShape],
    gpus: Sequence[Gpu],
    count: int,
    load_of: LoadOf,
    pinned: Mapping[str, Sequence[str]],
) -> dict[str, tuple[str, ...]]:
    """Return the UUIDs of the GPUs of each model that is still to be started.

    The largest model is placed first, and each on the GPUs with the most free memory. The result
    does not depend on the order of the starts, so a smaller model that is started first leaves the
    larger one the GPU that it needs.

    Args:
        models: The models.
        gpus: All suitable GPUs.
        count: GPUs of each model.
        load_of: See ``LoadOf``.
        pinned: UUIDs of the GPUs of a model that has been placed already.
    """
    whole = {gpu.uuid: gpu.free_bytes for gpu in gpus}  # free if each takes what it would alone
    least = dict(whole)  # free if each takes the least that it can
    found = {}
    for model in sorted(models, key=lambda each: (-models[each].parameters, each)):
        for free in (whole, least):  # the latter if it must share a GPU with shorter texts
            left = [replace(gpu, free_bytes=max(0, free[gpu.uuid])) for gpu in gpus]
            chosen = freest(left, count, pinned.get(model, ()))
            load = load_of(models[model], min(chosen, key=lambda gpu: gpu.free_bytes))
            plans = (load.plan(_for(load, step)) for step in load.steps())
            if plan := next(filter(None, plans), None):
                break
        least_bytes = load.need_bytes(load.least)
        for gpu in chosen:
            whole[gpu.uuid] -= plan.need_bytes if plan else least_bytes
            least[gpu.uuid] -= least_bytes
        found[model] = tuple(gpu.uuid for gpu in chosen)
    return found


def naming_holders(
    error: StartError,
    model: str,
    chosen: Sequence[Gpu],
    servers: Sequence[GpuServer],
    fits_with: Callable[[Sequence[str], int], bool],
) -> StartError:
    """Return an error about short memory that names emberd's servers that hold memory there.

    Args:
        error: The error.
        model: The model that does not fit.
        chosen: The GPUs that it was planned for.
        servers: emberd's servers on this machine.
        fits_with: Whether the model fits together with others, given their names and the bytes
            that are free once their servers are stopped.
    """
    uuids = {gpu.uuid for gpu in chosen}
    holders = [each for each in servers if each.memory and uuids & set(each.memory.gpus)]
    if not holders:
        return error
    held = "; ".join(_held(each, uuids) for each in holders)
    names = list(dict.fromkeys(each.model for each in holders))
    stop = " and ".join(f"`emberd stop {shlex.quote(name)}`" for name in names)
    freed = sum(each.memory.planned_bytes for each in holders if each.memory)
    advice = f"{stop} frees it"
    together = [name for name in names if name != model]
    if together and fits_with(together, freed):
        both = shlex.join([*together, model])
        advice = f"To plan them together: {stop}, then `emberd up {both}`"
    return StartError(f"{error.cause}: {held}", advice=f"{advice}. Otherwise: {error.advice}")


def _held(server: GpuServer, uuids: set[str]) -> str:
    planned = server.memory.planned_bytes if server.memory else 0
    text = f"emberd's server of {server.model} is planned to take {in_gib(planned)} there"
    pending = max((server.pending.get(uuid, 0) for uuid in uuids), default=0)
    if pending < _LEAST_NAMED_BYTES:
        return text
    return f"{text}, {in_gib(pending)} of it not yet in use"


def _common_steps(sharers: Sequence[Sharer]) -> Iterator[Step]:
    """Yield the steps of the model with the longest context, which are steps of the others too."""
    yield from max((sharer.load for sharer in sharers), key=lambda load: load.full).steps()


def _for(load: Load, step: Step) -> Step:
    """Return a step for a model: a context that was requested is not shortened."""
    return step if load.may_shorten else replace(step, context=None)


def _refusal(sharers: Sequence[Sharer]) -> StartError:
    device = sharers[0].load.device
    parts, total = [], 0
    for sharer in sharers:
        load = sharer.load
        need = load.need_bytes(load.least)
        parts.append(
            f"{sharer.model} {in_gib(need)} with texts of {load.context_of(load.least):,} tokens"
        )
        total += need
    cause = (
        f"the servers that are to share a GPU need {in_gib(total)} ({', '.join(parts)}), but only "
        f"{in_gib(device.free_bytes)} of {in_gib(device.total_bytes)} is free on {device.name}"
    )
    ways = list(device.remedies)
    if not all(sharer.load.may_shorten for sharer in sharers):
        ways.append("request a shorter context")
    if smallest := _smallest(sharers):
        ways.append(f"use {' and '.join(smallest)}, which fit together")
    ways.append("start one of them only, with EMBERD_SHARE_GPU=0")
    return StartError(cause, advice=", or ".join(ways) + ".")


def _smallest(sharers: Sequence[Sharer]) -> list[str]:
    """Return the smallest known models of the same kinds; empty if they do not fit together."""
    names, total = [], 0
    for sharer in sharers:
        reranks, device = sharer.load.shape.reranks, sharer.load.device
        kind = {name: shape for name, shape in KNOWN.items() if shape.reranks == reranks}
        names.append(min(kind, key=lambda each: kind[each].parameters))
        smallest = Load(device, kind[names[-1]])
        total += smallest.need_bytes(smallest.least)
    is_other = names != [sharer.model for sharer in sharers]
    return names if is_other and total < sharers[0].load.device.free_bytes else []

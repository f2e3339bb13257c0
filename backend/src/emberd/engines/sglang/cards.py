"""Which GPUs SGLang can run on, and what is particular to each generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from emberd.engines.gpus import VISIBLE, Gpu, Survey, freest

MIN_CAPABILITY: Final = (8, 0)
"""Below it the kernels that SGLang ships have no code, whatever its own check says."""

NEEDS_CUDA: Final = (13, 0)
"""What the torch that SGLang 0.5.23 pins is built for; drivers from 580 on run it."""

_NEEDS_DRIVER: Final = 580
_MIG: Final = "MIG-"


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation of GPUs.

    Attributes:
        name: NVIDIA's name for it.
        capability: The lowest compute capability that belongs to it.
        attention: The kernels that SGLang chooses there by itself.
        why: Why emberd leaves that choice alone, and what it keeps off.
    """

    name: str
    capability: tuple[int, int]
    attention: str
    why: str


GENERATIONS: Final = (
    Generation(
        "Blackwell (consumer)",
        (12, 0),
        "flashinfer or triton",
        "SGLang's own choice for compute capability 12; the datacentre kernels do not run there",
    ),
    Generation(
        "Blackwell",
        (10, 0),
        "trtllm_mha",
        "SGLang's own choice; it raises the page size, of which the figures are multiples",
    ),
    Generation(
        "Hopper",
        (9, 0),
        "fa3",
        "SGLang's own choice; the path without a KV cache, for which prefill in chunks must be "
        "off, is not taken: it gave NaN for short texts up to 0.5.12 and is unproven here",
    ),
    Generation("Ada", (8, 9), "flashinfer, else triton", "SGLang's own choice"),
    Generation("Ampere", (8, 0), "flashinfer, else triton", "SGLang's own choice"),
)
"""The newest first. Read in srt/arg_groups/model_override_base.py; none has been tried."""


def generation(capability: tuple[int, int]) -> Generation | None:
    """Return the generation of a compute capability; None for one that is too old."""
    return next((known for known in GENERATIONS if capability >= known.capability), None)


def unsuitable(seen: Survey, count: int = 1) -> str | None:
    """Return why SGLang cannot run on ``count`` of these GPUs and what to do; None if it can."""
    if seen.problem:
        return seen.problem
    if seen.cuda is not None and seen.cuda < NEEDS_CUDA:
        return (
            f"the NVIDIA driver {seen.driver} runs CUDA up to {_version(seen.cuda)}, and SGLang "
            f"needs {_version(NEEDS_CUDA)}: install driver {_NEEDS_DRIVER} or newer"
        )
    fit = suitable(seen.gpus)
    if not fit:
        found = ", ".join(f"{gpu.name} ({_version(gpu.capability)})" for gpu in seen.gpus)
        return (
            f"SGLang needs a GPU of compute capability {_version(MIN_CAPABILITY)} or more "
            f"(Ampere and newer); here is {found}"
        )
    if count > 1 and any(gpu.uuid.startswith(_MIG) for gpu in fit):
        return (
            f"{count} GPUs were asked for, and CUDA gives a process one MIG instance; "
            f"leave tp_size and dp_size out"
        )
    if len(fit) < count:
        return (
            f"{count} GPUs were asked for (tp_size times dp_size), and {len(fit)} can be used; "
            f"ask for fewer, or show more of them in {VISIBLE}"
        )
    return None


def suitable(gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """Return those that SGLang can run on."""
    return tuple(gpu for gpu in gpus if gpu.capability >= MIN_CAPABILITY)


def choose(gpus: Sequence[Gpu], count: int = 1) -> tuple[Gpu, ...]:
    """Return the ``count`` suitable GPUs with the most free memory, the freest first."""
    return freest(suitable(gpus), count)


def _version(numbers: tuple[int, int]) -> str:
    return ".".join(map(str, numbers))

"""Whether a model can be served here: its kind, the device, the memory."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from emberd import hub_cache, model_card, model_files
from emberd.catalog import DEMO_MODEL
from emberd.engines.gpus import Gpu, Survey
from emberd.engines.sglang.geometry import element_bytes, geometry_of
from emberd.serving import processor
from emberd.settings import ServerSpec

NAME: Final = "transformers"
CPU: Final = "cpu"
CUDA: Final = "cuda"
MPS: Final = "mps"

_ARCHITECTURES: Final = ("Qwen3ForCausalLM", "Qwen3Model")
_BFLOAT16: Final = "bfloat16"
_FLOAT32: Final = "float32"
_NATIVE_BFLOAT16: Final = (8, 0)  # compute capability

PINNED_CUDA: Final = (13, 0)
"""What the wheels of the pinned torch are built for."""

# CUDA 13 ends the support of what is older than Turing; torch 2.14.1 has no code below 7.5.
_NEEDS_CAPABILITY: Final = {13: (7, 5)}
_VERSION_FILE: Final = Path("torch", "version.py")
_BUILT_FOR: Final = re.compile(r"^cuda\b[^=]*= '(\d+)\.(\d+)'", re.MULTILINE)

_ROOM: Final = 1.05  # activations and torch itself, beside the weights
_GPU_CONTEXT_BYTES: Final = 1024**3
_GIB: Final = 1024**3
_SMALLER: Final = (
    "or ask for Qwen/Qwen3-Embedding-0.6B with an index of its own: its vectors are others"
)
_ELSEWHERE: Final = "name a server on another machine, EMBERD_BASE_URL=http://HOST:30000/v1"


def unfit(spec: ServerSpec) -> str | None:
    """Return why what is asked for cannot be served whatever the machine; None if it may be."""
    if spec.model == DEMO_MODEL:
        return f"does not serve {DEMO_MODEL}, which is bundled with another engine"
    if spec.quantization is not None:
        return f"serves no quantised weights; leave quantization={spec.quantization!r} out"
    return _unfit_files(spec.model, spec.revision) or _too_long(spec)


def device(spec: ServerSpec, cuda: tuple[int, int] | None, seen: Survey) -> tuple[str, str | None]:
    """Return where the model would run, and why it cannot run there; None if it can.

    The CPU is taken only when it, or this engine, was asked for by name: nobody who asked for
    nothing waits a minute for a vector without having been told.

    Args:
        spec: What is asked for.
        cuda: The CUDA that the installed torch is built for; None when it is built without.
        seen: The GPUs of this machine.
    """
    problem = _no_cuda(cuda, seen)
    if spec.device == CUDA or (spec.device is None and problem is None):
        return CUDA, problem
    has_mps = sys.platform == "darwin" and platform.machine() == "arm64"
    if spec.device == MPS and not has_mps:
        return MPS, "device='mps' is Apple's GPU, and this is no Mac with Apple silicon"
    if spec.device == MPS or (spec.device is None and has_mps):
        return MPS, None
    if spec.device not in (None, CPU):
        return spec.device or CPU, f"device={spec.device!r} is not known: give cuda, mps or cpu"
    if spec.device is None and spec.engine != NAME:
        return CPU, (
            f"{problem}. On the CPU it serves only when asked to, and slowly: engine={NAME!r} "
            f"or device='cpu'; else {_ELSEWHERE}"
        )
    return CPU, None


def suitable(seen: Survey, cuda: tuple[int, int]) -> tuple[Gpu, ...]:
    """Return the GPUs for which a torch that is built for ``cuda`` has code."""
    least = _NEEDS_CAPABILITY.get(cuda[0], (0, 0))
    return tuple(gpu for gpu in seen.gpus if gpu.capability >= least)


def has_torch(packages: str) -> bool:
    """Return whether a ``site-packages`` holds torch itself."""
    return (Path(packages) / _VERSION_FILE).is_file()


def torch_cuda(packages: str) -> tuple[int, int] | None:
    """Return the CUDA that the torch in a ``site-packages`` is built for; None for none."""
    try:
        found = _BUILT_FOR.search((Path(packages) / _VERSION_FILE).read_text(encoding="utf-8"))
    except OSError:
        return None
    return (int(found[1]), int(found[2])) if found else None


def number_format(where: str, gpu: Gpu | None) -> str:
    """Return the format that the server will choose, by the rules of ``emberd.serving.devices``."""
    if gpu is not None:
        return _BFLOAT16 if gpu.capability >= _NATIVE_BFLOAT16 else _FLOAT32
    return _BFLOAT16 if where == MPS or processor.multiplies_bfloat16() else _FLOAT32


def short_of_memory(spec: ServerSpec, where: str, gpu: Gpu | None = None) -> str | None:
    """Return why the weights do not fit and what to do; None if they do, or nobody can tell.

    Args:
        spec: What is asked for.
        where: The device.
        gpu: The GPU that is taken; None on others than CUDA.
    """
    geometry = geometry_of(spec.model)
    if geometry is None:
        return None
    dtype = number_format(where, gpu)
    need = round(geometry.parameters * element_bytes(dtype) * _ROOM)
    if gpu is not None:
        need, free, name = need + _GPU_CONTEXT_BYTES, gpu.free_bytes, gpu.name
    else:
        import psutil

        free, name = psutil.virtual_memory().available, "this machine"
    if free >= need:
        return None
    return (
        f"{spec.model} needs {need / _GIB:.1f} GiB in {dtype}, and {free / _GIB:.1f} GiB is free "
        f"on {name}; free some, {_SMALLER}, or {_ELSEWHERE}"
    )


def _unfit_files(model: str, revision: str | None) -> str | None:
    if not model_files.is_folder(model):
        if model_files.is_path(model):
            return f"there is no folder {model}"
        kept = hub_cache.snapshot(model, revision)
        problem = model_card.why_unsupported(kept, partial=True) if kept else None
        return str(problem) if problem else None
    if not (Path(model) / model_files.CONFIG).is_file():
        return f"the folder {model} holds no {model_files.CONFIG}: it is no checkpoint"
    architecture = model_card.architecture(Path(model))
    if architecture not in _ARCHITECTURES:
        return (
            f"serves {' and '.join(_ARCHITECTURES)} with last-token pooling, and {model} is of the "
            f"architecture {architecture}"
        )
    problem = model_card.why_unsupported(Path(model))
    return str(problem) if problem else None


def _too_long(spec: ServerSpec) -> str | None:
    geometry = geometry_of(spec.model)
    if geometry is None or not spec.context_tokens:
        return None
    if spec.context_tokens <= geometry.context_tokens:
        return None
    return (
        f"{spec.model} takes texts of up to {geometry.context_tokens:,} tokens, not "
        f"{spec.context_tokens:,}; split longer texts"
    )


def _no_cuda(cuda: tuple[int, int] | None, seen: Survey) -> str | None:
    if seen.problem:
        return seen.problem
    if cuda is None:
        return "the installed torch is built without CUDA"
    if seen.cuda is not None and seen.cuda[0] < cuda[0]:
        return (
            f"the NVIDIA driver {seen.driver} runs CUDA up to {_dotted(seen.cuda)}, and the "
            f"installed torch needs {_dotted(cuda)}: install a newer driver"
        )
    if suitable(seen, cuda):
        return None
    found = ", ".join(f"{gpu.name} ({_dotted(gpu.capability)})" for gpu in seen.gpus)
    least = _dotted(_NEEDS_CAPABILITY[cuda[0]])
    return f"torch for CUDA {_dotted(cuda)} needs compute capability {least}; here is {found}"


def _dotted(numbers: Sequence[int]) -> str:
    return ".".join(map(str, numbers))

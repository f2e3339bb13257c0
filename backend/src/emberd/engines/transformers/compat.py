"""Which models the transformers engine supports, and where one would run: device and memory."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from emberd import model_card, model_files
from emberd.catalog import DEMO_MODEL
from emberd.engines.gpus import Gpu, Survey
from emberd.engines.model_shape import element_bytes, shape_of
from emberd.serving import hardware
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

# CUDA 13 dropped GPUs older than Turing; torch 2.14.1 has no code below 7.5.
_NEEDS_CAPABILITY: Final = {13: (7, 5)}
_VERSION_FILE: Final = Path("torch", "version.py")
_BUILT_FOR: Final = re.compile(r"^cuda\b[^=]*= '(\d+)\.(\d+)'", re.MULTILINE)

_OVERHEAD: Final = 1.05  # activations and torch itself, relative to the weights
_GPU_CONTEXT_BYTES: Final = 1024**3
_GIB: Final = 1024**3
_SMALLER: Final = (
    "or use Qwen/Qwen3-Embedding-0.6B (needs its own index; the vectors are not compatible)"
)
_ELSEWHERE: Final = "point EMBERD_BASE_URL=http://HOST:30000/v1 at another machine"


def why_unsupported(spec: ServerSpec) -> str | None:
    """Return why ``spec`` cannot be served on any machine; None if it may be."""
    if spec.model == DEMO_MODEL:
        return f"does not serve {DEMO_MODEL}, which is bundled with another engine"
    if spec.quantization is not None:
        return f"serves no quantised weights; leave quantization={spec.quantization!r} out"
    if problem := _unsupported_files(spec.model, spec.revision):
        return problem
    shape = shape_of(spec.model)
    if shape and spec.context_tokens and spec.context_tokens > shape.context_tokens:
        return (
            f"{spec.model} accepts texts of up to {shape.context_tokens:,} tokens, not "
            f"{spec.context_tokens:,}; split longer texts"
        )
    return None


def choose_device(
    spec: ServerSpec, cuda: tuple[int, int] | None, seen: Survey
) -> tuple[str, str | None]:
    """Return where the model would run, and why it cannot run there (None if it can).

    The CPU is used only if it, or this engine, was requested by name, so that nobody waits a
    minute for a vector without having been warned.

    Args:
        spec: The request.
        cuda: The CUDA that the installed torch is built for; None if it is built without.
        seen: The GPUs of this machine.
    """
    problem = _why_no_cuda(cuda, seen)
    if spec.device == CUDA or (spec.device is None and problem is None):
        return CUDA, problem
    has_mps = sys.platform == "darwin" and platform.machine() == "arm64"
    if spec.device == MPS and not has_mps:
        return MPS, "device='mps' is Apple's GPU, and this is not a Mac with Apple silicon"
    if spec.device == MPS or (spec.device is None and has_mps):
        return MPS, None
    if spec.device not in (None, CPU):
        return spec.device or CPU, f"device={spec.device!r} is unknown: use cuda, mps or cpu"
    if spec.device is None and spec.engine != NAME:
        return CPU, (
            f"{problem}. On the CPU it serves only if requested, and slowly: engine={NAME!r} or "
            f"device='cpu'. Alternatively, {_ELSEWHERE}"
        )
    return CPU, None


def suitable(seen: Survey, cuda: tuple[int, int]) -> tuple[Gpu, ...]:
    """Return the GPUs for which a torch that is built for ``cuda`` has code."""
    least = _NEEDS_CAPABILITY.get(cuda[0], (0, 0))
    return tuple(gpu for gpu in seen.gpus if gpu.capability >= least)


def has_torch(packages: str) -> bool:
    """Return whether a ``site-packages`` folder contains torch."""
    return (Path(packages) / _VERSION_FILE).is_file()


def torch_cuda(packages: str) -> tuple[int, int] | None:
    """Return the CUDA that the torch in a ``site-packages`` folder is built for; None for none."""
    try:
        found = _BUILT_FOR.search((Path(packages) / _VERSION_FILE).read_text(encoding="utf-8"))
    except OSError:
        return None
    return (int(found[1]), int(found[2])) if found else None


def short_of_memory(spec: ServerSpec, device: str, gpu: Gpu | None = None) -> str | None:
    """Return why the weights do not fit and what to do; None if they do, or it is unknown.

    Args:
        spec: The request.
        device: Where the model runs.
        gpu: The GPU that is used; None on other devices than CUDA.
    """
    shape = shape_of(spec.model)
    if shape is None:
        return None
    dtype = _dtype(device, gpu)
    need = round(shape.parameters * element_bytes(dtype) * _OVERHEAD)
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


def _dtype(device: str, gpu: Gpu | None) -> str:
    """Return the number format that the server will choose, by the rules of our own server."""
    if gpu is not None:
        return _BFLOAT16 if gpu.capability >= _NATIVE_BFLOAT16 else _FLOAT32
    return _BFLOAT16 if device == MPS or hardware.multiplies_bfloat16() else _FLOAT32


def _unsupported_files(model: str, revision: str | None) -> str | None:
    if not model_files.is_folder(model):
        if model_files.is_path(model):
            return f"there is no folder {model}"
        kept = model_files.hub_snapshot(model, revision)
        problem = model_card.why_unsupported(kept, partial=True) if kept else None
        return str(problem) if problem else None
    if not (Path(model) / model_files.CONFIG).is_file():
        return f"the folder {model} contains no {model_files.CONFIG}, so it is not a checkpoint"
    architecture = model_card.architecture(Path(model))
    if architecture not in _ARCHITECTURES:
        return (
            f"serves {' and '.join(_ARCHITECTURES)} with last-token pooling, and {model} has the "
            f"architecture {architecture}"
        )
    problem = model_card.why_unsupported(Path(model))
    return str(problem) if problem else None


def _why_no_cuda(cuda: tuple[int, int] | None, seen: Survey) -> str | None:
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
    return f"torch for CUDA {_dotted(cuda)} needs compute capability {least}; found {found}"


def _dotted(numbers: Sequence[int]) -> str:
    return ".".join(map(str, numbers))

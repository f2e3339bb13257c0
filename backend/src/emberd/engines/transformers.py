"""The engine for Qwen3-Embedding where SGLang cannot run: Hugging Face transformers.

Its server is our own (``emberd.serving``). The interpreter of an environment that contains torch
and transformers, but not emberd, runs it.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import emberd.serving
from emberd import installs, model_card, model_files, model_pooling
from emberd.catalog import EMBED, RERANK, Model
from emberd.engines import gpus, own_server
from emberd.engines.base import EnvironmentEngine, Launch, Plan, Reason
from emberd.engines.gpus import VISIBLE, Gpu
from emberd.engines.model_shape import element_bytes, shape_of
from emberd.engines.own_server import OwnServerEngine
from emberd.env import SERVER_KEY, setting_variable
from emberd.errors import StartError
from emberd.installs import Interpreter, interpreters
from emberd.installs.recipes import dotted
from emberd.serving import BOOTSTRAP, hardware
from emberd.settings import ServerSpec, StartOptions
from emberd.system import capacity, process_env

_NAME: Final = "transformers"
_CPU: Final = "cpu"
_CUDA: Final = "cuda"
_MPS: Final = "mps"

_ARCHITECTURES: Final = ("Qwen3ForCausalLM", "Qwen3Model")
_RERANKER: Final = "Qwen3ForCausalLM"
_OLDEST_MAJOR: Final = 5  # the functions that the server calls have these names since then
_NATIVE_BFLOAT16: Final = (8, 0)  # compute capability

_PINNED_CUDA: Final = (13, 0)
"""What the wheels of the pinned torch are built for."""

# CUDA 13 dropped GPUs older than Turing; torch 2.14.1 has no code below 7.5.
_NEEDS_CAPABILITY: Final = {13: (7, 5)}
_VERSION_FILE: Final = Path("torch", "version.py")
_BUILT_FOR: Final = re.compile(r"^cuda\b[^=]*= '(\d+)\.(\d+)'", re.MULTILINE)

_OVERHEAD: Final = 1.05  # activations and torch itself, relative to the weights
_GPU_CONTEXT_BYTES: Final = 1024**3
_GIB: Final = 1024**3
_SMALLER: Final = {
    EMBED: "or use Qwen/Qwen3-Embedding-0.6B (needs its own index; the vectors are not compatible)",
    RERANK: "or use Qwen/Qwen3-Reranker-0.6B",
}

_SILENCE_S: Final = 300.0
_DOWNLOAD_SILENCE_S: Final = 900.0  # the hub's client may download to a file that is not watched
_DRAIN_S: Final = 60.0
_SGLANG_CAPABILITY: Final = (8, 0)

_BOOTSTRAP: Final = os.fspath(Path(emberd.serving.__file__).with_name(BOOTSTRAP))


class TransformersEngine(OwnServerEngine, EnvironmentEngine):
    """Serves Qwen3-Embedding checkpoints through Hugging Face transformers."""

    name = _NAME
    product = "transformers"
    library = "torch"
    reinstall = (
        "Reinstall it: `emberd engine remove transformers`, then `emberd engine install "
        "transformers`."
    )
    free_memory = "Free some memory, or use a smaller model (it needs its own index)."

    def why_unsupported(self, spec: ServerSpec) -> str | None:
        """Return why it cannot serve ``spec`` on any machine; None if it can."""
        if problem := super().why_unsupported(spec):
            return problem
        if spec.quantization is not None:
            return f"serves no quantised weights; omit quantization={spec.quantization!r}"
        shape = shape_of(spec.model, spec.task)
        if shape and spec.context_tokens and spec.context_tokens > shape.context_tokens:
            return (
                f"{spec.model} accepts texts of up to {shape.context_tokens:,} tokens, not "
                f"{spec.context_tokens:,}; split longer texts"
            )
        return None

    def exclusive_resources(self, spec: ServerSpec, _options: StartOptions) -> Sequence[str]:
        """Return the UUID of the GPU with the most free memory; nothing unless CUDA is used."""
        _, gpu, _ = _choose_device(spec)
        return [gpu.uuid] if gpu else ()

    def plan(self, spec: ServerSpec, launch: Launch) -> Plan:
        """Return how to start a server for ``spec``.

        Raises:
            StartError: Memory is short, the engine was removed, or several GPUs were requested.
            SettingError: ``EMBERD_TRANSFORMERS_PYTHON`` names no interpreter that has it.
        """
        python = self._interpreter(launch)
        device, gpu, problem = _choose_device(spec, launch.exclusive_resources)
        problem = problem or _short_of_memory(spec, device, gpu)
        if problem is not None:
            raise StartError(f"The {_NAME} engine cannot serve here: {problem}")
        if launch.options.gpus > 1:
            raise StartError(
                f"{launch.options.gpus} GPUs were requested, but the {_NAME} engine uses one",
                advice="Omit tp_size and dp_size, or use engine='sglang'.",
            )
        words = _words(spec, launch, python, device)
        variables = {
            # Not -P: an interpreter that is too old for it could not report that it is too old.
            "PYTHONSAFEPATH": ("1", "the folder of the server's file contains no packages"),
            "TOKENIZERS_PARALLELISM": ("true", "the texts of a request are tokenised in parallel"),
        }
        if gpu is not None:
            variables[VISIBLE] = (gpu.uuid, f"{gpu.name}: the one with the most free memory")
        secret = {SERVER_KEY: launch.api_key} if launch.api_key else {}
        return Plan(
            command=[word for part, _ in words for word in part],
            environment=process_env.for_server_of(python.python)
            | {name: value for name, (value, _) in variables.items()}
            | secret,
            device=device,
            silence_s=_SILENCE_S if model_files.is_folder(spec.model) else _DOWNLOAD_SILENCE_S,
            drain_s=_DRAIN_S,
            reasons=[
                *(Reason(" ".join(part), why) for part, why in words),
                *(Reason(f"{name}={value}", why) for name, (value, why) in variables.items()),
            ],
            notes=self._notes(spec, python, device, gpu),
        )

    def _why_not_here(self, spec: ServerSpec) -> str | None:
        if problem := self.why_unsupported(spec):
            return problem
        device, _, problem = _choose_device(spec)
        # For a GPU the plan checks the memory: only then it is known which one is used.
        return problem or (None if device == _CUDA else _short_of_memory(spec, device))

    def _why_unsupported_entry(self, model: Model) -> str | None:
        return _why_other(model.name, model.architecture)

    def _why_not_reranked(self, spec: ServerSpec) -> str | None:
        is_folder = model_files.is_folder(spec.model)
        kind = model_pooling.architecture(Path(spec.model)) if is_folder else _RERANKER
        if kind == _RERANKER:
            return None
        return f"scores pairs with {_RERANKER}, but {spec.model} has the architecture {kind}"

    def _why_not_version(self, version: str, spec: ServerSpec) -> str | None:  # noqa: ARG002
        major = version.partition(".")[0]
        is_old = major.isdigit() and int(major) < _OLDEST_MAJOR
        return f"is older than {_OLDEST_MAJOR}.0" if is_old else None

    def _why_unsupported_files(self, folder: Path, *, partial: bool) -> str | None:
        if not partial and (other := _why_other(str(folder), model_pooling.architecture(folder))):
            return other
        problem = model_pooling.why_unsupported(folder, partial=partial)
        return str(problem) if problem else None

    def _notes(
        self, spec: ServerSpec, python: Interpreter, device: str, gpu: Gpu | None
    ) -> list[str]:
        is_folder = model_files.is_folder(spec.model)
        embeds = is_folder and spec.task != RERANK
        notes = model_card.unused_prompts(Path(spec.model)) if embeds else []
        tested = installs.RECIPES[_NAME].version
        if python.version != tested:
            notes.append(
                f"emberd is tested with transformers {tested}, but {python.python} has "
                f"{python.version}"
            )
        if device == _CPU and spec.device is None:
            notes.append(f"{spec.model} runs on the CPU: suitable for a few texts, not for bulk")
        elif gpu is not None and gpu.capability >= _SGLANG_CAPABILITY:
            notes.append("SGLang is faster on this GPU: emberd engine install sglang")
        return notes


def _why_other(model: str, architecture: str | None) -> str | None:
    if architecture in _ARCHITECTURES:
        return None
    return (
        f"serves {' and '.join(_ARCHITECTURES)} with last-token pooling, but {model} has the "
        f"architecture {architecture}"
    )


def _words(
    spec: ServerSpec, launch: Launch, python: Interpreter, device: str
) -> list[tuple[tuple[str, ...], str]]:
    """Return the parts of the command, and why each is there."""
    words: list[tuple[tuple[str, ...], str]] = [
        ((python.python,), f"has transformers {python.version}: {python.why}"),
        ((_BOOTSTRAP,), "our server, for an interpreter without emberd"),
        (("--encoder", _NAME), "the kind of model"),
        (("--model-path", model_files.absolute(spec.model)), "the requested model"),
        (("--served-model-name", spec.model), "the name by which clients request it"),
        (own_server.address(launch), "a loopback socket that is already listening"),
        (("--weight-version", launch.start_id), "the id of this start"),
        (("--device", device), "the best one that torch can use here, or the requested one"),
    ]
    if spec.revision is not None:
        words.append((("--revision", spec.revision), "requested"))
    if spec.task == RERANK:
        words.append((("--scores",), "the model is a reranker"))
    if spec.deterministic:
        words.append((("--deterministic",), "requested: each text is encoded by itself"))
    if spec.context_tokens is not None:
        words.append((("--context-tokens", str(spec.context_tokens)), "the longest text to accept"))
    if launch.options.arguments:
        words.append((launch.options.arguments, "EMBERD_ENGINE_ARGS, or the command line"))
    return words


# ------------------------------------------------------------ devices and memory


def torch_cuda(packages: str) -> tuple[int, int] | None:
    """Return the CUDA that the torch in a ``site-packages`` folder is built for; None for none."""
    try:
        found = _BUILT_FOR.search((Path(packages) / _VERSION_FILE).read_text(encoding="utf-8"))
    except OSError:
        return None
    return (int(found[1]), int(found[2])) if found else None


def _cuda() -> tuple[int, int] | None:
    """Return the CUDA that the engine's torch is built for; None if it is built without."""
    found = installs.locate(_NAME)
    if found is None:
        return _PINNED_CUDA
    packages = found.packages
    # In an environment that also uses the packages of another one, torch may be in another folder
    # of the interpreter's path than transformers.
    if not (Path(packages) / _VERSION_FILE).is_file():
        with suppress(OSError):
            torch = interpreters.query_cached(found.python, "torch")
            packages = torch.packages if torch else packages
    return torch_cuda(packages)


def _choose_device(
    spec: ServerSpec, locked: Sequence[str] = ()
) -> tuple[str, Gpu | None, str | None]:
    """Return the device for the model, its GPU for CUDA, and why it cannot be used; None if it can.

    The CPU is used only if it, or this engine, was requested by name, so that no user waits a
    minute for a vector without a warning.
    """
    seen, cuda = gpus.survey(), _cuda()
    least = _NEEDS_CAPABILITY.get((cuda or _PINNED_CUDA)[0], (0, 0))
    fit = [gpu for gpu in seen.gpus if gpu.capability >= least]
    problem = None
    if seen.problem:
        problem = seen.problem
    elif cuda is None:
        problem = "the installed torch is built without CUDA"
    elif seen.cuda is not None and seen.cuda[0] < cuda[0]:
        problem = (
            f"the NVIDIA driver {seen.driver} runs CUDA up to {dotted(seen.cuda)}, but the "
            f"installed torch needs {dotted(cuda)}: install a newer driver"
        )
    elif not fit:
        found = ", ".join(f"{gpu.name} ({dotted(gpu.capability)})" for gpu in seen.gpus)
        problem = (
            f"torch for CUDA {dotted(cuda)} needs compute capability {dotted(least)}; found {found}"
        )
    if spec.device == _CUDA or (spec.device is None and problem is None):
        return _CUDA, next(iter(gpus.freest(fit, locked=locked)), None), problem
    has_mps = sys.platform == "darwin" and platform.machine() == "arm64"
    if spec.device == _MPS and not has_mps:
        return _MPS, None, "device='mps' is Apple's GPU, but this is not a Mac with Apple silicon"
    if spec.device == _MPS or (spec.device is None and has_mps):
        return _MPS, None, None
    if spec.device not in (None, _CPU):
        return spec.device or _CPU, None, f"device={spec.device!r} is unknown: use cuda, mps or cpu"
    if spec.device is None and spec.engine != _NAME:
        problem = (
            f"{problem}. On the CPU it serves only if requested, and slowly: engine={_NAME!r} or "
            f"device='cpu'. Alternatively, {_elsewhere(spec)}"
        )
        return _CPU, None, problem
    return _CPU, None, None


def _elsewhere(spec: ServerSpec) -> str:
    variable = setting_variable("base_url", spec.task)
    return f"point {variable}=http://HOST:30000/v1 at another machine"


def _short_of_memory(spec: ServerSpec, device: str, gpu: Gpu | None = None) -> str | None:
    """Return why the weights do not fit and what to do; None if they do, or it is unknown."""
    shape = shape_of(spec.model, spec.task)
    if shape is None:
        return None
    free: int | None
    # Whether the server will choose bfloat16, by the rules of our own server.
    if gpu is not None:
        is_half = gpu.capability >= _NATIVE_BFLOAT16
        context_bytes, free, name = _GPU_CONTEXT_BYTES, gpu.free_bytes, gpu.name
    else:
        is_half = device == _MPS or hardware.multiplies_bfloat16()
        context_bytes, free, name = 0, capacity.free_memory(), "this machine"
    dtype = "bfloat16" if is_half else "float32"
    need = round(shape.parameters * element_bytes(dtype) * _OVERHEAD) + context_bytes
    if free is None or free >= need:
        return None
    return (
        f"{spec.model} needs {need / _GIB:.1f} GiB in {dtype}, but {free / _GIB:.1f} GiB is free "
        f"on {name}; free some, {_SMALLER[spec.task]}, or {_elsewhere(spec)}"
    )


ENGINE: Final = TransformersEngine()

"""The transformers engine as the rest of emberd uses it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import emberd.serving
from emberd import installs, model_card, model_files
from emberd.engines import gpus, own_server
from emberd.engines.base import EnvironmentEngine, Launch, Plan, Reason
from emberd.engines.gpus import Gpu, Survey
from emberd.engines.transformers import compat
from emberd.engines.transformers.compat import CPU, CUDA, NAME
from emberd.env import SERVER_KEY
from emberd.errors import StartError
from emberd.installs import Interpreter, interpreters
from emberd.serving import BOOTSTRAP
from emberd.settings import ServerSpec, StartOptions
from emberd.system import process_env
from emberd.system.log_rules import Diagnosis

_SILENCE_S: Final = 300.0
_DOWNLOAD_SILENCE_S: Final = 900.0  # the hub's client may download to a file that is not watched
_DRAIN_S: Final = 60.0
_SGLANG_CAPABILITY: Final = (8, 0)

_BOOTSTRAP: Final = os.fspath(Path(emberd.serving.__file__).with_name(BOOTSTRAP))

_Word = tuple[tuple[str, ...], str]
"""A part of the command, and why it is there."""


class TransformersEngine(EnvironmentEngine):
    """Serves Qwen3-Embedding checkpoints through Hugging Face transformers."""

    name = NAME
    product = "transformers"
    oldest_version = (5, 0)  # the functions that the server calls have these names since then
    takes_descriptor = True

    def why_unsupported(self, spec: ServerSpec) -> str | None:
        """Return why it cannot serve ``spec`` on any machine; None if it can."""
        return compat.why_unsupported(spec)

    def exclusive_resources(self, spec: ServerSpec, _options: StartOptions) -> Sequence[str]:
        """Return the UUID of the GPU with the most free memory; nothing unless CUDA is used."""
        seen = gpus.survey()
        device, _ = compat.choose_device(spec, _cuda(), seen)
        return [gpu.uuid for gpu in _freest(seen, ())] if device == CUDA else ()

    def plan(self, spec: ServerSpec, launch: Launch) -> Plan:
        """Return how to start a server for ``spec``.

        Raises:
            StartError: Memory is short, the engine was removed, or several GPUs were requested.
            SettingError: ``EMBERD_TRANSFORMERS_PYTHON`` names no interpreter that has it.
        """
        python, seen = self._interpreter(), gpus.survey()
        device, problem = compat.choose_device(spec, _cuda(), seen)
        gpu = None
        if device == CUDA:
            gpu = next(iter(_freest(seen, launch.exclusive_resources)), None)
        problem = problem or compat.short_of_memory(spec, device, gpu)
        if problem is not None:
            raise StartError(f"The {NAME} engine cannot serve here: {problem}")
        if launch.options.gpus > 1:
            raise StartError(
                f"{launch.options.gpus} GPUs were requested, and the {NAME} engine uses one",
                advice="Leave tp_size and dp_size out, or use engine='sglang'.",
            )
        words = _words(spec, launch, python, device)
        variables = _variables(gpu)
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

    def progress(self, log: str) -> str:
        """Return what the starting server is doing, in a few words, from its log so far."""
        return own_server.progress(log)

    def diagnose(self, exit_code: int | None, log: str) -> Diagnosis:
        """Return why the server failed; see ``Engine.diagnose``."""
        return own_server.diagnose(
            exit_code,
            log,
            library="torch",
            reinstall="Reinstall it: `emberd engine remove transformers`, then "
            "`emberd engine install transformers`.",
            free_memory="Free some memory, or use a smaller model (it needs its own index).",
        )

    def has_failed(self, _log: str) -> bool:
        """Return False: our own server exits if it fails."""
        return False

    def recognises(self, command: Sequence[str]) -> bool:
        """Return whether a process with this command line is a server of this kind."""
        return own_server.encoder_of(command) == NAME

    def _why_not_here(self, spec: ServerSpec) -> str | None:
        if problem := compat.why_unsupported(spec):
            return problem
        device, problem = compat.choose_device(spec, _cuda(), gpus.survey())
        # For a GPU the plan checks the memory: only then it is known which one is used.
        return problem or (None if device == CUDA else compat.short_of_memory(spec, device))

    def _notes(
        self, spec: ServerSpec, python: Interpreter, device: str, gpu: Gpu | None
    ) -> list[str]:
        is_folder = model_files.is_folder(spec.model)
        notes = model_card.unused_prompts(Path(spec.model)) if is_folder else []
        if not self._is_pinned(python.version):
            tested = installs.RECIPES[NAME].version
            notes.append(
                f"emberd is tested with transformers {tested}, and {python.python} has "
                f"{python.version}"
            )
        if device == CPU and spec.device is None:
            notes.append(f"{spec.model} runs on the CPU: suitable for a few texts, not for bulk")
        elif gpu is not None and gpu.capability >= _SGLANG_CAPABILITY:
            notes.append("SGLang is faster on this GPU: emberd engine install sglang")
        return notes


def _cuda() -> tuple[int, int] | None:
    """Return the CUDA that the engine's torch is built for; None if it is built without."""
    found = installs.locate(NAME)
    if found is None:
        return compat.PINNED_CUDA
    packages = found.packages
    # In an environment that also uses the packages of another one, torch may be in another folder
    # of the interpreter's path than transformers.
    if not compat.has_torch(packages):
        try:
            torch = interpreters.query_cached(found.python, "torch")
        except OSError:
            torch = None
        packages = torch.packages if torch else packages
    return compat.torch_cuda(packages)


def _freest(seen: Survey, locked: Sequence[str]) -> tuple[Gpu, ...]:
    fit = compat.suitable(seen, _cuda() or compat.PINNED_CUDA)
    # Those that are locked for this start; a dry run locks none.
    own = tuple(gpu for gpu in fit if gpu.uuid in locked)
    return gpus.freest(own or fit)


def _words(spec: ServerSpec, launch: Launch, python: Interpreter, device: str) -> list[_Word]:
    words: list[_Word] = [
        ((python.python,), f"has transformers {python.version}: {python.why}"),
        ((_BOOTSTRAP,), "our server, for an interpreter without emberd"),
        (("--encoder", NAME), "the kind of model"),
        (("--model-path", model_files.absolute(spec.model)), "the requested model"),
        (("--served-model-name", spec.model), "the name by which clients request it"),
        (own_server.address(launch), "a loopback socket that is already listening"),
        (("--weight-version", launch.start_id), "the id of this start"),
        (("--device", device), "the best one that torch can use here, or the requested one"),
    ]
    for option, value in (("--revision", spec.revision),):
        if value is not None:
            words.append(((option, value), "requested"))
    if spec.context_tokens is not None:
        words.append((("--context-tokens", str(spec.context_tokens)), "the longest text to accept"))
    if launch.options.arguments:
        words.append((launch.options.arguments, "EMBERD_ENGINE_ARGS, or the command line"))
    return words


def _variables(gpu: Gpu | None) -> dict[str, tuple[str, str]]:
    variables = {
        # Not -P: an interpreter that is too old for it could not report that it is too old.
        "PYTHONSAFEPATH": ("1", "the folder of the server's file contains no packages"),
        "TOKENIZERS_PARALLELISM": ("true", "the texts of a request are tokenised in parallel"),
    }
    if gpu is not None:
        variables[gpus.VISIBLE] = (gpu.uuid, f"{gpu.name}: the one with the most free memory")
    return variables


ENGINE: Final = TransformersEngine()

"""The transformers engine as the rest of emberd sees it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import emberd.serving
from emberd import installs, model_card, model_files
from emberd.engines import gpus, surroundings
from emberd.engines.base import Diagnosis, Launch, Plan, Reason
from emberd.engines.gpus import Gpu, Survey
from emberd.engines.own_server import address, encoder_of
from emberd.engines.transformers import diagnosis, suiting
from emberd.engines.transformers.suiting import CPU, CUDA, NAME
from emberd.env import SERVER_KEY
from emberd.errors import StartError
from emberd.installs import Interpreter, probe
from emberd.serving import BOOTSTRAP
from emberd.settings import ServerSpec, StartOptions

_SILENCE_S: Final = 300.0
_DOWNLOAD_SILENCE_S: Final = 900.0  # the hub's client may keep a large file elsewhere meanwhile
_DRAIN_S: Final = 60.0
_OLDEST: Final = (5, 0)  # what the server calls of transformers is called so since then
_SGLANG_CAPABILITY: Final = (8, 0)

_INSTALL: Final = f"emberd engine install {NAME}"
_BOOTSTRAP: Final = os.fspath(Path(emberd.serving.__file__).with_name(BOOTSTRAP))


class _Word(NamedTuple):
    """A part of the command, and why it is there."""

    words: tuple[str, ...]
    why: str


class TransformersEngine:
    """Serves Qwen3-Embedding checkpoints through Hugging Face transformers."""

    name = NAME
    takes_descriptor = True

    def refusal(self, spec: ServerSpec) -> str | None:
        """Return why it cannot serve ``spec`` on this machine and what to do; None if it can."""
        return self._unsuitable(spec) or _no_interpreter()

    def unfit(self, spec: ServerSpec) -> str | None:
        """Return why it cannot serve ``spec`` on any machine; None if it can."""
        return suiting.unfit(spec)

    def missing(self, spec: ServerSpec) -> str | None:
        """Return its own name where nothing is missing but its environment."""
        return NAME if self._unsuitable(spec) is None and _no_interpreter() else None

    def claims(self, spec: ServerSpec, _options: StartOptions) -> Sequence[str]:
        """Return the UUID of the GPU with the most free memory; nothing on others than CUDA."""
        seen = gpus.survey()
        where, _ = suiting.device(spec, _cuda(), seen)
        return [gpu.uuid for gpu in _chosen(seen, ())] if where == CUDA else ()

    def plan(self, spec: ServerSpec, launch: Launch) -> Plan:
        """Return how to start a server for ``spec``.

        Raises:
            StartError: Memory is short, the engine was removed, or several GPUs were asked for.
            SettingError: ``EMBERD_TRANSFORMERS_PYTHON`` names no interpreter that has it.
        """
        python, seen = _interpreter(), gpus.survey()
        where, problem = suiting.device(spec, _cuda(), seen)
        gpu = next(iter(_chosen(seen, launch.claimed)), None) if where == CUDA else None
        problem = problem or suiting.short_of_memory(spec, where, gpu)
        if problem is not None:
            raise StartError(f"The {NAME} engine cannot serve here: {problem}")
        if launch.options.gpus > 1:
            raise StartError(
                f"{launch.options.gpus} GPUs were asked for, and the {NAME} engine uses one",
                advice="Leave tp_size and dp_size out, or ask for engine='sglang'.",
            )
        words = _words(spec, launch, python, where)
        added = _variables(gpu)
        secret = {SERVER_KEY: launch.api_key} if launch.api_key else {}
        return Plan(
            command=[word for part in words for word in part.words],
            environment=surroundings.other_interpreter(python.python)
            | {name: value for name, (value, _) in added.items()}
            | secret,
            device=where,
            silence_s=_SILENCE_S if model_files.is_folder(spec.model) else _DOWNLOAD_SILENCE_S,
            drain_s=_DRAIN_S,
            reasons=[
                *(Reason(" ".join(part.words), part.why) for part in words),
                *(Reason(f"{name}={value}", why) for name, (value, why) in added.items()),
            ],
            notes=_notes(spec, python, where, gpu),
        )

    def progress(self, log: str) -> str:
        """Return what the starting server is doing, in a few words, from its log so far."""
        return diagnosis.progress(log)

    def diagnose(self, exit_code: int | None, log: str) -> Diagnosis:
        """Return why the server died; see ``Engine.diagnose``."""
        return diagnosis.diagnose(exit_code, log)

    def is_doomed(self, _log: str) -> bool:
        """Return False: a server of ours that fails ends."""
        return False

    def recognises(self, command: Sequence[str]) -> bool:
        """Return whether a process with this command line is a server of this kind."""
        return encoder_of(command) == NAME

    def _unsuitable(self, spec: ServerSpec) -> str | None:
        if problem := suiting.unfit(spec):
            return problem
        seen = gpus.survey()
        where, problem = suiting.device(spec, _cuda(), seen)
        # On a GPU the plan tells: which one it is, and what is free there, is known only then.
        return problem or (None if where == CUDA else suiting.short_of_memory(spec, where))


def _no_interpreter() -> str | None:
    found = installs.locate(NAME)
    if found is None:
        size = installs.in_words(installs.RECIPES[NAME].bytes)
        return (
            f"not installed: `{_INSTALL}` installs it in an environment of its own ({size}); "
            f"EMBERD_AUTO_INSTALL=1 has that done when it is needed"
        )
    if _numbers(found.version) < _OLDEST:
        return (
            f"transformers {found.version} ({found.python}: {found.why}) is older than "
            f"{'.'.join(map(str, _OLDEST))}; `{_INSTALL}` installs one that emberd was tried with"
        )
    return None


def _interpreter() -> Interpreter:
    found = installs.locate(NAME)
    if found is None:  # removed since it was asked whether it can serve
        raise StartError(f"The {NAME} engine is not installed any more", advice=f"Run: {_INSTALL}")
    return found


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[: len(_OLDEST)] if part.isdigit())


def _cuda() -> tuple[int, int] | None:
    found = installs.locate(NAME)
    return suiting.torch_cuda(_torch_packages(found)) if found else suiting.PINNED_CUDA


def _torch_packages(found: Interpreter) -> str:
    # torch may be in another folder of the interpreter's path than transformers: in an
    # environment that also uses the packages of another one.
    if suiting.has_torch(found.packages):
        return found.packages
    try:
        held = probe.ask_once(found.python, "torch")
    except OSError:
        return found.packages
    return held.packages if held else found.packages


def _chosen(seen: Survey, claimed: Sequence[str]) -> tuple[Gpu, ...]:
    fit = suiting.suitable(seen, _cuda() or suiting.PINNED_CUDA)
    # Those that are held for this start; a dry run holds none.
    held = tuple(gpu for gpu in fit if gpu.uuid in claimed)
    return gpus.freest(held or fit)


def _words(spec: ServerSpec, launch: Launch, python: Interpreter, where: str) -> list[_Word]:
    words = [
        _Word((python.python,), f"has transformers {python.version}: {python.why}"),
        _Word((_BOOTSTRAP,), "our server, for an interpreter that has no emberd"),
        _Word(("--encoder", NAME), "the kind of model"),
        _Word(("--model-path", model_files.absolute(spec.model)), "the model that was asked for"),
        _Word(("--served-model-name", spec.model), "clients ask for it by this name"),
        _Word(address(launch), "a socket of this machine's loopback, which listens already"),
        _Word(("--weight-version", launch.fingerprint), "the name of this start"),
        _Word(("--device", where), "the best that torch can use here, or what was asked for"),
    ]
    if spec.revision is not None:
        words.append(_Word(("--revision", spec.revision), "it was asked for"))
    if spec.context_tokens is not None:
        longest = str(spec.context_tokens)
        words.append(_Word(("--context-tokens", longest), "the longest text that must fit"))
    if launch.options.arguments:
        words.append(_Word(launch.options.arguments, "EMBERD_ENGINE_ARGS, or the command line"))
    return words


def _variables(gpu: Gpu | None) -> dict[str, tuple[str, str]]:
    added = {
        # Not -P: an interpreter too old for it would not get as far as saying so.
        "PYTHONSAFEPATH": ("1", "the folder that the server's file stands in holds no packages"),
        "TOKENIZERS_PARALLELISM": ("true", "the texts of a request are split side by side"),
    }
    if gpu is not None:
        added[gpus.VISIBLE] = (gpu.uuid, f"{gpu.name}: the one with the most free memory")
    return added


def _notes(spec: ServerSpec, python: Interpreter, where: str, gpu: Gpu | None) -> list[str]:
    notes = model_card.unused_prompts(Path(spec.model)) if model_files.is_folder(spec.model) else []
    tried = installs.RECIPES[NAME].version
    if python.version != tried:
        notes.append(
            f"emberd was tried with transformers {tried}, and {python.python} has {python.version}"
        )
    if where == CPU and spec.device is None:
        notes.append(f"{spec.model} runs on the CPU: for a few texts, not for bulk work")
    elif gpu is not None and gpu.capability >= _SGLANG_CAPABILITY:
        notes.append("SGLang is faster on this GPU: emberd engine install sglang")
    return notes


ENGINE: Final = TransformersEngine()

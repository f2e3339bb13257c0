"""SGLang as the rest of emberd sees it: whether it can serve, how it is started, how it died."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from emberd import hub_cache, installs, model_files
from emberd.catalog import DEMO_MODEL
from emberd.engines import gpus, surroundings
from emberd.engines.base import Diagnosis, Launch, Plan, Reason
from emberd.engines.gpus import Gpu
from emberd.engines.sglang import (
    arguments,
    cards,
    diagnosis,
    flags,
    memory,
    models,
    progress,
    recognition,
)
from emberd.engines.sglang.flags import Flag, Target
from emberd.engines.sglang.geometry import geometry_of
from emberd.engines.sglang.memory import MemoryPlan
from emberd.engines.sglang.options import known_options
from emberd.env import Places
from emberd.errors import StartError
from emberd.installs import Interpreter
from emberd.settings import ServerSpec, StartOptions

NAME: Final = "sglang"
_MODULE: Final = "sglang.launch_server"
_CONFIG: Final = "sglang.yaml"
_CPU_KERNELS: Final = str(Path(__file__).with_name("cpu"))
_OLDEST: Final = (0, 5, 17)  # the first whose embeddings come as base64

# Kernels are compiled at a first start on a GPU, and a download shows no progress of its own.
_CPU_SILENCE_S: Final = 300.0
_GPU_SILENCE_S: Final = 900.0
_DOWNLOAD_SILENCE_S: Final = 7200.0
_DRAIN_S: Final = 60.0

_INSTALL: Final = f"emberd engine install {NAME}"
_ELSEWHERE: Final = "name a server on another machine, EMBERD_BASE_URL=http://HOST:30000/v1"


class SglangEngine:
    """Serves Qwen3-Embedding, and with a warning other models, through SGLang."""

    name = NAME
    takes_descriptor = False  # it opens its port itself, when the model is loaded

    def refusal(self, spec: ServerSpec) -> str | None:
        """Return why it cannot serve ``spec`` on this machine and what to do; None if it can."""
        return self._unsuitable(spec) or _no_interpreter()

    def unfit(self, spec: ServerSpec) -> str | None:
        """Return why it cannot serve ``spec`` on any machine; None if it can."""
        if spec.model == DEMO_MODEL:
            return f"does not serve {DEMO_MODEL}, which is bundled with another engine"
        return models.unfit(spec.model, spec.revision)

    def missing(self, spec: ServerSpec) -> str | None:
        """Return its own name where nothing is missing but its environment."""
        return NAME if self._unsuitable(spec) is None and _no_interpreter() else None

    def claims(self, spec: ServerSpec, options: StartOptions) -> Sequence[str]:
        """Return the UUIDs of the GPUs with the most free memory; nothing on a CPU."""
        if spec.device == flags.CPU:
            return ()
        return [gpu.uuid for gpu in cards.choose(gpus.survey().gpus, options.gpus)]

    def plan(self, spec: ServerSpec, launch: Launch) -> Plan:
        """Return how to start a server for ``spec``.

        Raises:
            StartError: Memory is short, or the installed version lacks an option.
            SettingError: ``EMBERD_SGLANG_PYTHON`` names no interpreter that has it.
        """
        on_cpu = spec.device == flags.CPU
        arguments.check(launch.options, on_cpu=on_cpu)
        chosen = () if on_cpu else _chosen(launch)
        figures = _figures(spec, launch.options, chosen)
        python = _interpreter()
        words = flags.adapt(flags.flags(_target(spec, launch, figures)), _known(python))
        own = launch.options.arguments
        added = _variables(chosen, on_cpu=on_cpu)
        return Plan(
            command=(python.python, "-m", _MODULE, *flags.words(words, own)),
            environment=surroundings.other_interpreter(python.python)
            | {k: v for k, (v, _) in added.items()},
            device=flags.CPU if on_cpu else flags.GPU,
            silence_s=_silence_s(spec, on_cpu=on_cpu),
            drain_s=_DRAIN_S,
            files={_CONFIG: flags.config_text(launch.port, launch.api_key)},
            reasons=_reasons(python, words, own, added, figures),
            notes=[*models.notes(spec.model, spec.revision), *(figures.notes if figures else ())],
        )

    def progress(self, log: str) -> str:
        """Return what the starting server is doing, in a few words, from its log so far."""
        return progress.progress(log)

    def diagnose(self, exit_code: int | None, log: str) -> Diagnosis:
        """Return why the server died; see ``Engine.diagnose``."""
        return diagnosis.diagnose(exit_code, log)

    def is_doomed(self, log: str) -> bool:
        """Return whether it has lost its port, which it notices two minutes later."""
        return diagnosis.doomed(log)

    def recognises(self, command: Sequence[str]) -> bool:
        """Return whether a process with this command line is the main process of a server."""
        return recognition.recognises(command)

    def _unsuitable(self, spec: ServerSpec) -> str | None:
        return self.unfit(spec) or _no_device(spec.device)


def _no_device(device: str | None) -> str | None:
    if device == flags.CPU:
        here = f"{platform.system()} {platform.machine()}"
        if sys.platform == "linux" and platform.machine() == "x86_64":
            return None
        return f"runs on the CPU of x86-64 Linux alone, for development, and here is {here}"
    if device not in (None, flags.GPU):
        return f"runs on a CUDA GPU or, for development, on a CPU, and device={device!r} was given"
    problem = cards.unsuitable(gpus.survey())
    if problem is None:
        return None
    return (
        f"{problem}. Else {_ELSEWHERE}; "
        f"to try emberd without a GPU, ask for model={DEMO_MODEL!r}; "
        f"device='cpu' runs SGLang on the CPU, slowly, for development"
    )


def _no_interpreter() -> str | None:
    found = installs.locate(NAME)
    if found is None:
        size = installs.in_words(installs.RECIPES[NAME].bytes)
        return (
            f"SGLang is not installed: `{_INSTALL}` installs it in an environment of its own "
            f"({size}); EMBERD_AUTO_INSTALL=1 has that done when it is needed"
        )
    if _numbers(found.version) < _OLDEST:
        return (
            f"SGLang {found.version} ({found.python}: {found.why}) is older than "
            f"{'.'.join(map(str, _OLDEST))}; `{_INSTALL}` installs one that emberd was tried with"
        )
    return None


def _interpreter() -> Interpreter:
    found = installs.locate(NAME, Places.resolve())
    if found is None:  # removed since it was asked whether it can serve
        raise StartError("SGLang is not installed any more", advice=f"Run: {_INSTALL}")
    return found


def _known(python: Interpreter) -> frozenset[str] | None:
    """Return the options of another version than the one that every flag was tried with."""
    if python.version == installs.RECIPES[NAME].version:
        return None
    return known_options(python.packages)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[: len(_OLDEST)] if part.isdigit())


def _chosen(launch: Launch) -> tuple[Gpu, ...]:
    survey = gpus.survey()
    if problem := cards.unsuitable(survey, launch.options.gpus):
        raise StartError(f"SGLang cannot run here: {problem}")
    # Those that are held for this start; a dry run holds none.
    held = [gpu for gpu in survey.gpus if gpu.uuid in launch.claimed]
    return cards.choose(held or survey.gpus, launch.options.gpus)


def _figures(spec: ServerSpec, options: StartOptions, chosen: Sequence[Gpu]) -> MemoryPlan | None:
    geometry = geometry_of(spec.model)
    if geometry is None:
        return None
    device: Gpu | memory.Device
    if chosen:
        device = min(chosen, key=lambda gpu: gpu.free_bytes)
    else:
        import psutil

        seen = psutil.virtual_memory()
        device = memory.on_host(seen.total, seen.available)
    return memory.plan_memory(
        device,
        geometry,
        spec.context_tokens,
        tp_size=options.tp_size,
        quantization=spec.quantization,
    )


def _target(spec: ServerSpec, launch: Launch, figures: MemoryPlan | None) -> Target:
    return Target(
        model=spec.model,
        port=launch.port,
        fingerprint=launch.fingerprint,
        device=flags.CPU if spec.device == flags.CPU else flags.GPU,
        memory=figures,
        revision=spec.revision,
        quantization=spec.quantization,
        context_tokens=spec.context_tokens,
        cuttable=True,
        config=os.path.join(launch.folder, _CONFIG),
        tp_size=launch.options.tp_size,
        dp_size=launch.options.dp_size,
    )


def _variables(chosen: Sequence[Gpu], *, on_cpu: bool) -> dict[str, tuple[str, str]]:
    added = flags.variables(os.environ, flags.CPU if on_cpu else flags.GPU, chosen)
    if on_cpu:
        added["PYTHONPATH"] = (_CPU_KERNELS, "stands in for kernels that exist for GPUs alone")
    elif "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        kept = os.path.join(Places.resolve().home, "torchinductor")
        why = "compiled kernels outlive the folder for temporary files that each start gets"
        added["TORCHINDUCTOR_CACHE_DIR"] = (kept, why)
    return added


def _silence_s(spec: ServerSpec, *, on_cpu: bool) -> float:
    if not (model_files.is_folder(spec.model) or hub_cache.is_downloaded(spec.model)):
        return _DOWNLOAD_SILENCE_S
    return _CPU_SILENCE_S if on_cpu else _GPU_SILENCE_S


def _reasons(
    python: Interpreter,
    words: Sequence[Flag],
    own: Sequence[str],
    added: dict[str, tuple[str, str]],
    figures: MemoryPlan | None,
) -> list[Reason]:
    return [
        Reason(python.python, f"has SGLang {python.version}: {python.why}"),
        *flags.reasons(words, own),
        *(Reason(f"{name}={value}", why) for name, (value, why) in added.items()),
        *(figures.reasons() if figures else ()),
    ]


ENGINE: Final = SglangEngine()

"""SGLang as the rest of emberd uses it: availability, plan of a start, log, running servers."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import PurePath
from typing import Final

from emberd import env, model_files
from emberd.catalog import DEMO_MODEL, EMBED, RERANK
from emberd.engines import gpu_usage, gpus
from emberd.engines.base import EnvironmentEngine, Launch, MemoryNeed, OtherCache, Plan, Reason
from emberd.engines.gpu_usage import PlannedUsage, Usage
from emberd.engines.gpus import Gpu, Survey
from emberd.engines.model_shape import shape_of
from emberd.engines.sglang import command, log_reader, memory, support
from emberd.engines.sglang.memory import MemoryPlan
from emberd.errors import NoEngineError, StartError
from emberd.settings import ServerSpec, StartOptions
from emberd.system import capacity, process_env

_MODULE: Final = "sglang.launch_server"
_FORKED: Final = "sglang_forked"  # in the folder ``cpu``; it runs the module that follows
_WHY_FORKED: Final = "SGLang's processes are forked, because each would import SGLang again"
_CONFIG: Final = "sglang.yaml"
_STORE: Final = "torch-store"

# Command lines of its main process.
_MODULES: Final = (_MODULE, "sglang.cli.main", "sglang")
_SCRIPT: Final = "sglang"
_VERB: Final = "serve"
_ENDS_OPTIONS: Final = ("-m", "-c")

# Kernels are compiled at the first start on a GPU, and a download shows no progress.
_CPU_SILENCE_S: Final = 300.0
_GPU_SILENCE_S: Final = 900.0
_DOWNLOAD_SILENCE_S: Final = 7200.0
_DRAIN_S: Final = 60.0


class SglangEngine(EnvironmentEngine):
    """Serves Qwen3-Embedding, and with a warning other models, through SGLang."""

    name = "sglang"
    product = "SGLang"
    takes_descriptor = False  # it opens its port itself, after the model is loaded

    def exclusive_resources(self, spec: ServerSpec, options: StartOptions) -> Sequence[str]:
        """Return the UUIDs of the GPUs with the most free memory; nothing on a CPU."""
        if spec.device == command.CPU:
            return ()
        seen, precision = gpus.survey().gpus, spec.quantization
        chosen = support.freest_supported(seen, options.gpus, quantization=precision)
        return [gpu.uuid for gpu in chosen]

    def other_cache(self, options: StartOptions) -> OtherCache | None:
        """Return where it keeps a model of a hub; None for the hub's cache."""
        return command.other_cache(options, os.environ)

    def plan(self, spec: ServerSpec, launch: Launch) -> Plan:
        """Return how to start a server for ``spec``.

        Raises:
            StartError: Memory is short, or the installed version cannot serve it.
            SettingError: ``EMBERD_SGLANG_PYTHON`` names no interpreter that has it.
            StateFolderError: Another user can have written code of the model that would be run.
        """
        on_cpu = spec.device == command.CPU
        own = launch.options.arguments
        command.check_arguments(launch.options, on_cpu=on_cpu)
        if command.runs_code_of_models(launch.options):
            support.check_code(spec.model, spec.revision)
        chosen: tuple[Gpu, ...] = ()
        if not on_cpu:
            survey = gpus.survey()
            count, precision = launch.options.gpus, spec.quantization
            if problem := support.why_unsuitable(survey, count, precision):
                raise StartError(f"SGLang cannot run here: {problem}")
            locked = launch.exclusive_resources
            chosen = support.freest_supported(survey.gpus, count, locked, precision)
        python = self._interpreter(launch)
        version = support.find_version(python.version)
        if version is None:  # it was replaced after ``why_unavailable`` had looked at it
            problem = support.why_not_version(python.version, spec)
            raise StartError(f"SGLang {python.version} {problem}", advice=f"Run: {self._install}")
        earlier = _earlier_usage(spec, launch, chosen, python.version)
        figures = _plan_memory(spec, launch.options, chosen, earlier)
        usage = None
        if figures and earlier:
            usual = _plan_memory(spec, launch.options, chosen) or figures
            planned_bytes = usual.need_bytes
            usage = PlannedUsage(earlier, [gpu.uuid for gpu in chosen], planned_bytes)
        config = os.path.join(launch.folder, _CONFIG)
        flags = command.flags(spec, launch, figures, config)
        store = os.path.join(launch.folder, _STORE)
        variables = command.variables(
            *(os.environ, chosen, store, launch.home),
            deterministic=spec.deterministic,
            msgpack=version.msgpack,
        )
        is_here = model_files.is_folder(spec.model) or (
            self.uses_hub_cache(spec, launch.options) and model_files.is_downloaded(spec.model)
        )
        if not is_here:
            silence_s = _DOWNLOAD_SILENCE_S
        else:
            silence_s = _CPU_SILENCE_S if on_cpu else _GPU_SILENCE_S
        return Plan(
            # Of two options that clash the last wins, so the user's come last.
            command=(
                *(python.python, "-m", *([_FORKED] if on_cpu else ()), _MODULE),
                *(word for flag in flags for word in flag.words),
                *own,
            ),
            environment=process_env.for_server_of(python.python)
            | {name: value for name, (value, _) in variables.items()},
            device=command.CPU if on_cpu else command.GPU,
            silence_s=silence_s,
            drain_s=_DRAIN_S,
            has_ready=version.has_ready,
            files={_CONFIG: command.config_text(launch.port, launch.api_key), _STORE: ""},
            reasons=[
                Reason(python.python, f"has SGLang {python.version}: {python.why}"),
                *([Reason(_FORKED, _WHY_FORKED)] if on_cpu else ()),
                *(Reason(" ".join(flag.words), flag.why) for flag in flags),
                *([Reason(" ".join(own), "your own arguments")] if own else ()),
                *(Reason(f"{name}={value}", why) for name, (value, why) in variables.items()),
                *(figures.reasons() if figures else ()),
                *([Reason(*words)] if earlier and (words := earlier.in_words()) else ()),
            ],
            notes=[
                *([] if spec.task == RERANK else support.notes(spec.model, spec.revision)),
                *support.precision_notes(spec),
                *(figures.notes if figures else ()),
                *(earlier.notes if earlier else ()),
            ],
            gpu_usage=usage,
        )

    def estimate(self, spec: ServerSpec, options: StartOptions, gpu: Gpu) -> MemoryNeed | None:
        """Return what a server takes on a GPU; None if the model's size is not known.

        Raises:
            NoEngineError: It is not started for ``spec`` on any GPU.
            StartError: It does not fit, or cannot run on this GPU.
        """
        if problem := _why_refused(spec):
            raise NoEngineError(f"SGLang cannot serve {spec.model}: it {problem}.")
        command.check_arguments(options, on_cpu=False)
        survey = Survey((gpu,) * options.gpus)
        if problem := support.why_unsuitable(survey, options.gpus, spec.quantization):
            raise StartError(problem)
        plan = _plan_memory(spec, options, [gpu])
        return plan and replace(plan, notes=(*plan.notes, *support.precision_notes(spec)))

    progress = staticmethod(log_reader.progress)
    diagnose = staticmethod(log_reader.diagnose)
    has_failed = staticmethod(log_reader.has_failed)
    _why_unsupported_entry = staticmethod(support.why_entry_unservable)
    _why_unsupported_files = staticmethod(support.why_unservable)
    _why_not_reranked = staticmethod(support.why_not_reranked)
    _why_not_version = staticmethod(support.why_not_version)

    def recognises(self, words: Sequence[str]) -> bool:
        """Return whether a process with this command line is the main process of a server.

        The processes that SGLang names ``sglang::scheduler`` and the like belong to one.
        """
        if not words:
            return False
        program = os.path.basename(words[0])
        if program == _SCRIPT:
            return _VERB in words[1:2]
        if not program.startswith("python"):
            return False
        i = 1
        while i < len(words) and words[i].startswith("-") and words[i] not in _ENDS_OPTIONS:
            i += 2 if words[i] in ("-W", "-X") else 1
        word, rest = (words[i] if i < len(words) else ""), words[i + 1 :]
        if word in _ENDS_OPTIONS:
            module = rest[0] if word == "-m" and rest else ""
            return module in (_MODULE, _FORKED) or (module in _MODULES and _VERB in rest[1:2])
        script = PurePath(word)
        return (script.name == _SCRIPT and _VERB in rest[:1]) or script.parts[-2:] == (
            "sglang",
            "launch_server.py",
        )

    def _why_not_here(self, spec: ServerSpec) -> str | None:
        return self.why_unsupported(spec) or _why_refused(spec) or _why_no_device(spec)


def _why_refused(spec: ServerSpec) -> str | None:
    """Return why it is not started for ``spec`` on any machine, whatever the model's files say."""
    if spec.deterministic and spec.device == command.CPU:
        return "computes deterministically only on a GPU; use engine='transformers' on a CPU"
    return support.why_not_quantised(spec)


def _why_no_device(spec: ServerSpec) -> str | None:
    device = spec.device
    if device == command.CPU:
        if sys.platform == "linux" and platform.machine() == "x86_64":
            return None
        here = f"{platform.system()} {platform.machine()}"
        return f"runs on the CPU only on x86-64 Linux, for development, but this is {here}"
    if device not in (None, command.GPU):
        return f"runs on a CUDA GPU or, for development, on a CPU, not on device={device!r}"
    if (problem := support.why_unsuitable(gpus.survey(), quantization=spec.quantization)) is None:
        return None
    demo = f"to try emberd without a GPU, use model={DEMO_MODEL!r}; " if spec.task == EMBED else ""
    variable = env.setting_variable("base_url", spec.task)
    return (
        f"{problem}. Alternatively, point {variable}=http://HOST:30000/v1 at another machine; "
        f"{demo}device='cpu' runs SGLang on the CPU, slowly, for development"
    )


def _earlier_usage(
    spec: ServerSpec, launch: Launch, chosen: Sequence[Gpu], version: str
) -> Usage | None:
    """Return what earlier starts used; None where the plan is not comparable with them."""
    shape = shape_of(spec.model, spec.task)
    # The user's own arguments may change what is used.
    if shape is None or not chosen or launch.options.arguments:
        return None
    kind = {
        "gpu": min(chosen, key=lambda gpu: gpu.free_bytes).name,
        "sglang": version,
        "shape": asdict(shape),
        "quantization": spec.quantization,
        "deterministic": spec.deterministic,
        "tp_size": launch.options.tp_size,
    }
    return gpu_usage.read(launch.home, kind)


def _plan_memory(
    spec: ServerSpec,
    options: StartOptions,
    chosen: Sequence[Gpu],
    earlier: Usage | None = None,
) -> MemoryPlan | None:
    shape = shape_of(spec.model, spec.task)
    if shape is None:
        return None
    device: Gpu | memory.Device
    if chosen:
        device = min(chosen, key=lambda gpu: gpu.free_bytes)
    else:
        seen, free = capacity.machine_memory(), capacity.free_memory()
        if seen is None or free is None:
            return None
        # SGLang's fraction is one of the machine's memory, also in a container with less.
        device = memory.on_host(seen.limit, free)
    plan = partial(
        memory.plan_memory,
        device,
        shape,
        spec.context_tokens,
        tp_size=options.tp_size,
        quantization=spec.quantization,
        # Own arguments may choose other kernels too than those that were measured.
        deterministic=spec.deterministic or bool(options.arguments),
    )
    usual = plan()
    if earlier is None or not earlier.extra_bytes:
        return usual
    # What an earlier start used does not depend on this context, so it must not prevent a start.
    with suppress(StartError):
        if (larger := plan(extra_bytes=earlier.extra_bytes)).context_tokens == usual.context_tokens:
            return larger
    note = (
        f"An earlier start used {earlier.extra_bytes / memory.GIB:.1f} GiB more than planned "
        f"({earlier.file}), for which there is no space; memory may be short"
    )
    return replace(usual, notes=(*usual.notes, note))


ENGINE: Final = SglangEngine()

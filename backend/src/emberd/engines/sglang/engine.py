"""SGLang as the rest of emberd uses it: availability, plan of a start, log, running servers."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import PurePath
from typing import Any, Final

from emberd import model_card, model_files
from emberd.catalog import DEMO_MODEL, EMBED, RERANK
from emberd.engines import gpu_usage, gpus
from emberd.engines.base import EnvironmentEngine, Launch, OtherCache, Plan, Reason
from emberd.engines.gpu_usage import GpuMemory, GpuServer, PlannedUsage, Usage
from emberd.engines.gpus import Gpu, Survey
from emberd.engines.model_shape import ModelShape, shape_of
from emberd.engines.sglang import command, log_reader, memory, shared_gpu, support
from emberd.engines.sglang.memory import Device, Load, MemoryPlan
from emberd.errors import NoEngineError, StartError
from emberd.settings import ServerSpec, StartOptions
from emberd.system import capacity, process_env

_MODULE: Final = "sglang.launch_server"
_FORKED: Final = "sglang_forked"  # in the folder ``cpu``; it runs the module that follows
_WHY_FORKED: Final = "SGLang's processes are forked, because each would import SGLang again"
_CONFIG: Final = "sglang.yaml"
_STORE: Final = "torch-store"
# srt/managers/load_snapshot.py. SGLang's "sgl_shm_..." must not be here: while it is passed between
# processes, none of them has it open.
_MEMORY: Final = ("sglang_loads_",)

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

    def exclusive_resources(
        self, spec: ServerSpec, options: StartOptions, servers: Sequence[GpuServer] = ()
    ) -> Sequence[str]:
        """Return the UUIDs of the GPUs for ``spec`` (``shared_gpu.place``); nothing on a CPU."""
        if spec.device == command.CPU:
            return ()
        _, chosen = _choose(gpus.survey().gpus, spec, options, servers)
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
        seen: tuple[Gpu, ...] = ()
        chosen: tuple[Gpu, ...] = ()
        if not on_cpu:
            survey = gpus.survey()
            count = launch.options.gpus
            if problem := support.why_unsuitable(survey, count, spec.quantization):
                raise StartError(f"SGLang cannot run here: {problem}")
            locked = launch.exclusive_resources
            seen, chosen = _choose(survey.gpus, spec, launch.options, launch.servers, locked)
        python = self._interpreter(launch)
        version = support.find_version(python.version)
        if version is None:  # it was replaced after ``why_unavailable`` had looked at it
            problem = support.why_not_version(python.version, spec)
            raise StartError(f"SGLang {python.version} {problem}", advice=f"Run: {self._install}")
        earlier = _earlier_usage(spec, launch, chosen, python.version)
        planner = _Planner.of(spec, launch.options, chosen, seen=seen, servers=launch.servers)
        figures = planner.plan(earlier) if planner else None
        usage = reserved = None
        uuids = tuple(gpu.uuid for gpu in chosen)
        if planner and figures and earlier:
            usage = PlannedUsage(earlier, uuids, planner.plan().need_bytes)
        if figures and chosen:
            reserved = GpuMemory(uuids, figures.need_bytes, figures.loaded_bytes)
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
            gpu_memory=reserved,
            memory=_MEMORY,
        )

    def estimate(
        self,
        spec: ServerSpec,
        options: StartOptions,
        gpus: Sequence[Gpu],
        servers: Sequence[GpuServer] = (),
    ) -> MemoryPlan | None:
        """Return what a server takes on each of its GPUs; None if the model's size is not known.

        Raises:
            NoEngineError: It is not started for ``spec`` on any GPU.
            StartError: It does not fit, or cannot run on these GPUs.
        """
        if problem := _why_refused(spec):
            raise NoEngineError(f"SGLang cannot serve {spec.model}: it {problem}.")
        command.check_arguments(options, on_cpu=False)
        precision = spec.quantization
        if problem := support.why_unsuitable(Survey(tuple(gpus)), options.gpus, precision):
            raise StartError(problem)
        seen, chosen = _choose(gpus, spec, options, servers)
        planner = _Planner.of(spec, options, chosen, seen=seen, servers=servers)
        if planner is None:
            return None
        plan = planner.plan()
        return replace(plan, notes=(*plan.notes, *support.precision_notes(spec)))

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
    return (
        f"{problem}. Alternatively, point EMBERD_BASE_URL=http://HOST:30000/v1 at another machine; "
        f"{demo}device='cpu' runs SGLang on the CPU, slowly, for development"
    )


def _choose(
    seen: Sequence[Gpu],
    spec: ServerSpec,
    options: StartOptions,
    servers: Sequence[GpuServer],
    locked: Sequence[str] = (),
) -> tuple[tuple[Gpu, ...], tuple[Gpu, ...]]:
    """Return all suitable GPUs, without what servers will still take, and those of a start."""
    available = gpu_usage.without_pending(seen, servers)
    precision = spec.quantization
    suitable = support.freest_supported(available, len(available), quantization=precision)
    if options.share_gpu and suitable and not locked:
        planner = _Planner.of(spec, options, suitable, seen=suitable, servers=servers)
        locked = planner.place()[spec.model] if planner else ()
    return suitable, gpus.freest(suitable, options.gpus, locked)


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


class _Planner:
    """Plans the memory of one start."""

    def __init__(
        self,
        spec: ServerSpec,
        options: StartOptions,
        shape: ModelShape,
        chosen: Sequence[Gpu],
        *,
        host: Device | None,
        seen: Sequence[Gpu],
        servers: Sequence[GpuServer],
    ) -> None:
        self._spec = spec
        self._options = options
        self._shape = shape
        self._chosen = chosen
        self._host = host
        self._seen = seen
        self._servers = servers
        self._how: dict[str, Any] = {
            "tp_size": options.tp_size,
            "quantization": spec.quantization,
            # Own arguments may choose other kernels too than those that were measured.
            "deterministic": spec.deterministic or bool(options.arguments),
        }

    @classmethod
    def of(
        cls,
        spec: ServerSpec,
        options: StartOptions,
        chosen: Sequence[Gpu],
        *,
        seen: Sequence[Gpu] = (),
        servers: Sequence[GpuServer] = (),
    ) -> _Planner | None:
        """Return the planner of a start; None if the size of model or memory is not known.

        Args:
            spec: What is started.
            options: How.
            chosen: Its GPUs; empty for the CPU.
            seen: All GPUs that could be chosen.
            servers: The other servers of emberd on this machine.
        """
        shape = shape_of(spec.model, spec.task)
        if shape is None:
            return None
        host = None
        if not chosen and (host := _host()) is None:
            return None
        return cls(spec, options, shape, chosen, host=host, seen=seen, servers=servers)

    def plan(self, earlier: Usage | None = None) -> MemoryPlan:
        """Return the plan.

        Args:
            earlier: What earlier starts used; None to ignore them.

        Raises:
            StartError: The memory is too small; the error names emberd's servers that hold it.
        """
        try:
            usual = self._plan(0)
        except StartError as error:
            raise shared_gpu.naming_holders(
                error, self._spec.model, self._chosen, self._servers, self._fits_with
            ) from None
        if earlier is None or not earlier.extra_bytes:
            return usual
        # What an earlier start used does not depend on this context, so it must not prevent a
        # start.
        with suppress(StartError):
            larger = self._plan(earlier.extra_bytes)
            if larger.context_tokens == usual.context_tokens:
                return larger
        note = (
            f"An earlier start used {memory.in_gib(earlier.extra_bytes)} more than planned "
            f"({earlier.file}), for which there is no space; memory may be short"
        )
        return replace(usual, notes=(*usual.notes, note))

    def place(self, chosen: Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
        """Return the GPUs of the model, and of those of ``share_gpu`` that are still to be started.

        Args:
            chosen: UUIDs of those that were chosen for the model, if they were.
        """
        models = {self._spec.model: self._shape, **self._to_come()[0]}
        return shared_gpu.place(
            models, self._seen, self._options.gpus, self._load, {self._spec.model: chosen}
        )

    def _plan(self, extra_bytes: int) -> MemoryPlan:
        if (host := self._host) is not None:
            return self._alone(host, extra_bytes)
        others, unknown = self._to_come()
        notes = tuple(f"no memory was left for {name}, whose size is not known" for name in unknown)
        mine = {gpu.uuid for gpu in self._chosen}
        placed = self.place(tuple(mine)) if others else {}
        beside = [
            shared_gpu.Sharer(name, self._load(shape, self._fullest))
            for name, shape in others.items()
            if mine.intersection(placed[name])
        ]
        if beside:
            own = self._load(self._shape, self._fullest, extra_bytes)
            plan = shared_gpu.plan_shared(shared_gpu.Sharer(self._spec.model, own), beside)
        else:
            plan = self._alone(self._fullest, extra_bytes)
        return replace(plan, notes=(*plan.notes, *notes))

    def _alone(self, device: Gpu | Device, extra_bytes: int = 0) -> MemoryPlan:
        return memory.plan_memory(
            device, self._shape, self._spec.context_tokens, extra_bytes=extra_bytes, **self._how
        )

    @property
    def _fullest(self) -> Gpu:
        return min(self._chosen, key=lambda gpu: gpu.free_bytes)

    def _to_come(self) -> tuple[dict[str, ModelShape], list[str]]:
        """Return the models of ``share_gpu`` that are still to be started, and the unknown ones."""
        placed = {self._spec.model, *(each.model for each in self._servers if each.is_placed)}
        shapes = {
            name: _shape_of_name(name) for name in self._options.share_gpu if name not in placed
        }
        known = {name: shape for name, shape in shapes.items() if shape}
        return known, [name for name, shape in shapes.items() if not shape and name != DEMO_MODEL]

    def _load(self, shape: ModelShape, gpu: Gpu, extra_bytes: int = 0) -> Load:
        """Return what a model takes with the options of this start."""
        device = memory.on_gpu(gpu, self._options.tp_size)
        context = self._spec.context_tokens
        if context is not None and shape is not self._shape:
            context = min(context, shape.context_tokens)
        return Load(replace(device, extra_bytes=extra_bytes), shape, context, **self._how)

    def _fits_with(self, names: Sequence[str], freed_bytes: int) -> bool:
        gpu = replace(self._fullest, free_bytes=self._fullest.free_bytes + freed_bytes)
        shapes = [(name, shape) for name in names if (shape := _shape_of_name(name))]
        sharers = [shared_gpu.Sharer(name, self._load(shape, gpu)) for name, shape in shapes]
        try:
            own = shared_gpu.Sharer(self._spec.model, self._load(self._shape, gpu))
            return bool(sharers) and bool(shared_gpu.plan_shared(own, sharers))
        except StartError:
            return False


def _host() -> Device | None:
    machine, free = capacity.machine_memory(), capacity.free_memory()
    if machine is None or free is None:
        return None
    # SGLang's fraction is one of the machine's memory, also in a container with less.
    return memory.on_host(machine.limit, free)


def _shape_of_name(model: str) -> ModelShape | None:
    task = model_card.describe(model).task
    return shape_of(model, task or EMBED)


ENGINE: Final = SglangEngine()

"""The engine interface: one kind of server, how it is started, watched and diagnosed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from emberd import catalog, env, model_card, model_files
from emberd.catalog import DEMO_MODEL, Model
from emberd.errors import StartError
from emberd.settings import ServerSpec, StartOptions
from emberd.system.disk_space import in_words
from emberd.system.log_rules import Diagnosis

if TYPE_CHECKING:
    from emberd.engines.gpu_usage import GpuMemory, GpuServer, PlannedUsage
    from emberd.engines.gpus import Gpu
    from emberd.installs import Interpreter

DRAIN_S: Final = 30.0

_FIGURES: Final = re.compile(r"\s+[(\d].*")

DRY_RUN_PORT: Final = 30_000
DRY_RUN_KEY: Final = "a-random-key-of-this-start"
DRY_RUN_FOLDER: Final = "FOLDER-OF-THE-SERVER"


@dataclass(frozen=True, slots=True)
class Launch:
    """What the supervisor decides before it asks an engine for a plan.

    Attributes:
        port: The loopback port for the server.
        api_key: The key that the server must require; None if it must require none.
        start_id: Random name of this start, which the server reports as its weight version. Every
            user of the machine can read it, so it proves nothing.
        folder: The server's state folder, for files that other users must not see.
        home: The folder of all state, for files that later starts use again.
        options: How the user wants it started.
        exclusive_resources: What ``Engine.exclusive_resources`` named and is locked for this start.
        descriptor: Descriptor of a socket that listens on ``port``, which the server inherits;
            None for an engine that opens its own, and for a dry run.
        interpreter: The interpreter that would run the server, for a dry run of an engine that is
            not installed; None to look for it.
        servers: The other servers of emberd on this machine.
    """

    port: int
    api_key: str | None = field(repr=False)
    start_id: str
    folder: str
    options: StartOptions = field(default_factory=StartOptions)
    home: str = field(kw_only=True)
    exclusive_resources: Sequence[str] = ()
    descriptor: int | None = None
    interpreter: Interpreter | None = None
    servers: Sequence[GpuServer] = ()


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an item is part of a plan, for display.

    Attributes:
        what: Words of the command, an environment variable, or a quantity.
        why: The reason, in one sentence without a full stop.
    """

    what: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """The memory that a server takes on each of its GPUs, in upper bounds.

    Attributes:
        weights_bytes: The weights, with what the allocator adds.
        kv_bytes: The KV cache.
        activation_bytes: What one batch takes while it runs.
        overhead_bytes: The runtime, workspaces, captured graphs, tables.
        need_bytes: The sum of these, or what loading the weights takes if that is more.
        longest_text_tokens: The longest text that fits, end-of-text token included.
        notes: What users of the server should know.
    """

    weights_bytes: int
    kv_bytes: int
    activation_bytes: int
    overhead_bytes: int
    need_bytes: int
    longest_text_tokens: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """How to start a server.

    Attributes:
        command: Program and arguments, without secrets.
        environment: The whole environment of the process; may hold secrets.
        device: Where the model will run, ``"cpu"``, ``"cuda"`` or ``"mps"``.
        silence_s: The start has failed if it makes no progress for this many seconds.
        drain_s: After SIGTERM, requests in flight get this many seconds to finish.
        has_ready: Whether the server has ``/ready``, which answers at once; otherwise ``/health``
            is requested, which may take long.
        files: Name in the state folder -> content, written with mode 0600 before the server
            starts; may hold secrets.
        reasons: Why each word of the command, and each figure in it, is there.
        notes: What users of the server should know; shown once.
        gpu_usage: What it may use of its GPUs, to be compared with what it uses; None on other
            devices, and if that is not known.
        gpu_memory: What it takes of its GPUs, which no other start may plan with; None on other
            devices, and if that is not known.
        memory: What the names of the server's shared memory begin with, if no other program's do.
    """

    command: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)
    device: str
    silence_s: float = 300.0
    drain_s: float = DRAIN_S
    has_ready: bool = True
    files: Mapping[str, str] = field(default_factory=dict, repr=False)
    reasons: Sequence[Reason] = ()
    notes: Sequence[str] = ()
    gpu_usage: PlannedUsage | None = None
    gpu_memory: GpuMemory | None = None
    memory: Sequence[str] = ()


class Engine(Protocol):
    """One kind of server. A module under ``emberd.engines`` offers one as ``ENGINE``.

    docs/architecture.md, section 'Add an engine', says how to write one.

    Attributes:
        name: The name that ``engine=`` takes.
        takes_descriptor: Whether its server can serve on a listening socket that it inherits.
    """

    name: str
    takes_descriptor: bool

    def why_unavailable(self, spec: ServerSpec) -> str | None:
        """Return why it cannot serve ``spec`` on this machine and what to do; None if it can."""

    def why_unsupported(self, spec: ServerSpec) -> str | None:
        """Return why its servers do not give ``spec``'s vectors on any machine; None if they do.

        For a model on the hub only files in the hub's cache are read, so the answer may differ
        after a download.
        """

    def installable_environment(self, spec: ServerSpec) -> str | None:  # noqa: ARG002
        """Return the environment whose installation would make it available, or None."""
        return None

    def exclusive_resources(
        self,
        spec: ServerSpec,  # noqa: ARG002
        options: StartOptions,  # noqa: ARG002
        servers: Sequence[GpuServer] = (),  # noqa: ARG002
    ) -> Sequence[str]:
        """Return names of resources that one start at a time may measure and take, e.g. GPU UUIDs.

        They are locked from before ``plan``, which measures what is free, until the server is
        ready.

        Args:
            spec: What to serve.
            options: How to start it.
            servers: The other servers of emberd on this machine.
        """
        return ()

    def plan(self, spec: ServerSpec, launch: Launch) -> Plan:
        """Return how to start a server for ``spec``. Writes nothing and starts nothing.

        Raises:
            StartError: A reason that ``why_unavailable`` cannot see, such as too little memory.
        """

    def estimate(
        self,
        spec: ServerSpec,  # noqa: ARG002
        options: StartOptions,  # noqa: ARG002
        gpus: Sequence[Gpu],  # noqa: ARG002
        servers: Sequence[GpuServer] = (),  # noqa: ARG002
    ) -> MemoryNeed | None:
        """Return what a server takes on each of those GPUs that it would use; None if not known.

        Neither the GPUs nor the engine have to be on this machine. What ``why_unavailable`` and
        ``plan`` refuse for other reasons than the machine is refused here too.

        Raises:
            NoEngineError: No server is started for ``spec`` on any GPU.
            StartError: It does not fit, or cannot run on these GPUs.
        """
        return None

    def progress(self, log: str) -> str:
        """Return what the starting server is doing, in a few words, from its log so far.

        The words before the first figure or parenthesis name the phase of the start; see
        ``phase_of``.
        """

    def diagnose(self, exit_code: int | None, log: str) -> Diagnosis:
        """Return why the server failed.

        Args:
            exit_code: As ``subprocess`` gives it, negative for a signal; None if the supervisor
                ended the server because it made no progress.
            log: What it wrote since its start.
        """

    def has_failed(self, log: str) -> bool:  # noqa: ARG002
        """Return whether a starting server has failed although its process still runs."""
        return False

    def recognises(self, command: Sequence[str]) -> bool:
        """Return whether a process with this command line is a server of this kind."""


def phase_of(progress: str) -> str:
    """Return the phase of a start: ``loading the weights (2 of 5 files)`` without its figures."""
    return _FIGURES.sub("", progress)


@dataclass(frozen=True, slots=True)
class OtherCache:
    """A place where an engine keeps models of a hub, which is not the hub's cache.

    Attributes:
        why: The option or variable that names it, as a clause.
        is_modelscope: It is the cache of ModelScope's package.
    """

    why: str
    is_modelscope: bool = False


class EnvironmentEngine(Engine):
    """Base class of engines that run in their own Python environment.

    Attributes:
        product: What its distribution is called in messages.
    """

    product: str

    def why_unavailable(self, spec: ServerSpec) -> str | None:
        """Return why it cannot serve ``spec`` on this machine and what to do; None if it can."""
        return self._why_not_here(spec) or self._why_not_installed(spec)

    def why_unsupported(self, spec: ServerSpec) -> str | None:
        """Return why it cannot serve ``spec`` on any machine; None if it can."""
        model = spec.model
        if model == DEMO_MODEL:
            return f"does not serve {DEMO_MODEL}, which is bundled with another engine"
        is_folder = model_files.is_folder(model)
        if is_folder and not (Path(model) / model_files.CONFIG).is_file():
            return f"the folder {model} contains no {model_files.CONFIG}, so it is not a checkpoint"
        if not is_folder and model_files.is_path(model):
            return f"there is no folder {model}"
        described = model_card.describe(model, spec.revision, task=spec.task)
        if described.task not in (None, spec.task):
            return _why_other_task(described)
        if spec.task == catalog.RERANK:
            return self._why_not_reranked(spec)
        if is_folder:
            return self._why_unsupported_files(Path(model), partial=False)
        known = catalog.find(model)
        if known is not None and (problem := self._why_unsupported_entry(known)):
            return problem
        kept = model_files.hub_snapshot(model, spec.revision)
        return self._why_unsupported_files(kept, partial=True) if kept else None

    def installable_environment(self, spec: ServerSpec) -> str | None:
        """Return the engine's name if only its environment is missing; else None."""
        return self.missing_environment(spec) if self._why_not_here(spec) is None else None

    def uses_hub_cache(self, spec: ServerSpec, options: StartOptions) -> bool:
        """Return whether its server reads the model from the hub's cache.

        Otherwise it is a folder, or the options or variables name another place.
        """
        is_local = model_files.is_folder(spec.model) or model_files.is_path(spec.model)
        return not is_local and self.other_cache(options) is None

    def other_cache(self, options: StartOptions) -> OtherCache | None:  # noqa: ARG002
        """Return where its server keeps a model of a hub; None for the hub's cache."""
        return None

    def missing_environment(self, spec: ServerSpec) -> str | None:
        """Return the engine's name if its environment must be installed for ``spec``; else None.

        It may be that the engine cannot serve on this machine at all.
        """
        from emberd import installs

        if env.text(installs.recipes.recipe_of(self.name).variable):
            return None  # that interpreter would be used even then
        return self.name if self._why_not_installed(spec) is not None else None

    def _why_not_here(self, spec: ServerSpec) -> str | None:
        """Return why it cannot serve ``spec`` here even if it is installed; None if it can."""
        raise NotImplementedError

    def _why_unsupported_entry(self, model: Model) -> str | None:
        """Return why it cannot serve a model of the catalog; None if it can."""
        raise NotImplementedError

    def _why_not_reranked(self, spec: ServerSpec) -> str | None:  # noqa: ARG002
        """Return why it cannot serve a model, which is a reranker, as one; None if it can."""
        return "serves no rerankers"

    def _why_unsupported_files(self, folder: Path, *, partial: bool) -> str | None:
        """Return why it cannot serve a model with these files; None if it can.

        Args:
            folder: The model, or the hub's cache of it.
            partial: Files may be missing, because it is a cache.
        """
        raise NotImplementedError

    def _why_not_version(self, version: str, spec: ServerSpec) -> str | None:
        """Return why an installed version cannot serve ``spec``, as a predicate; None if it can."""
        raise NotImplementedError

    def _interpreter(self, launch: Launch) -> Interpreter:
        """Return the interpreter that runs the server.

        Raises:
            StartError: It was removed after ``why_unavailable`` had found it.
        """
        from emberd import installs

        found = launch.interpreter or installs.locate(self.name)
        if found is None:
            cause = f"{self.product} is no longer installed"
            raise StartError(cause, advice=f"Run: {self._install}")
        return found

    def _why_not_installed(self, spec: ServerSpec) -> str | None:
        from emberd import installs

        found = installs.locate(self.name)
        if found is None:
            size = in_words(installs.RECIPES[self.name].bytes)
            return (
                f"{self.product} is not installed: `{self._install}` installs it in a separate "
                f"environment ({size}); with EMBERD_AUTO_INSTALL=1 emberd does so when it is needed"
            )
        problem = self._why_not_version(found.version, spec)
        if problem is None:
            return None
        recipe = installs.recipes.recipe_of(self.name)
        unset = f"; unset {recipe.variable} then" if env.text(recipe.variable) else ""
        return (
            f"{self.product} {found.version} ({found.python}: {found.why}) {problem}: "
            f"`{self._install}` installs {recipe.version}{unset}"
        )

    @property
    def _install(self) -> str:
        return f"emberd engine install {self.name}"


def _why_other_task(described: Model) -> str:
    reason = f" ({described.task_reason})" if described.task_reason else ""
    if described.task == catalog.RERANK:
        return f"{described.name} is a reranker{reason}: use emberd.Reranker"
    return f"{described.name} is an embedding model{reason}: use emberd.Embedder"


def dry_run(
    engine: Engine,
    spec: ServerSpec,
    options: StartOptions,
    home: str,
    *,
    interpreter: Interpreter | None = None,
    servers: Sequence[GpuServer] = (),
) -> Plan:
    """Return how ``engine`` would start a server for ``spec``; writes and locks nothing.

    Args:
        engine: An engine that can serve it, or could if it were installed.
        spec: What to serve.
        options: How to start it.
        home: The folder of all state, which would contain the server's.
        interpreter: The interpreter that an installation would make; None for an installed engine.
        servers: The servers of emberd on this machine.

    Raises:
        StartError: The machine lacks what the plan needs.
    """
    launch = Launch(
        port=options.port or DRY_RUN_PORT,
        api_key=None if options.no_auth else DRY_RUN_KEY,
        start_id="a-random-id-of-this-start",
        folder=os.path.join(home, DRY_RUN_FOLDER),
        home=home,
        options=options,
        exclusive_resources=tuple(engine.exclusive_resources(spec, options, servers)),
        interpreter=interpreter,
        servers=servers,
    )
    with env.errors_for(spec.task):
        return engine.plan(spec, launch)

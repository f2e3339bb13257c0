"""The supervisor of one server: starts it, notices that it died, hangs or is idle, and ends it.

::

    STARTING ──ready and verified──▶ READY ──idle, or asked to──▶ STOPPING ──▶ ABSENT
        └── died, silent ──▶ FAILED ◀── died, hung ──┘

What it shares with the supervisor of the gateway is in ``process_supervisor``.
"""

from __future__ import annotations

import secrets
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from emberd import engines, model_files, probe, weight_files
from emberd.endpoint import Endpoint
from emberd.engines.base import EnvironmentEngine, Launch, Plan
from emberd.engines.gpu_usage import GpuServer
from emberd.errors import EmberdError, LockTimeoutError, StartError
from emberd.manager import (
    cleanup,
    gpu_servers,
    history,
    locks,
    paths,
    ports,
    process_supervisor,
    process_tree,
    state,
)
from emberd.manager.health import HangMonitor, StartMonitor
from emberd.manager.idle import IdleMonitor
from emberd.manager.process_supervisor import ProcessSupervisor
from emberd.manager.state import Record, State, Verify
from emberd.settings import StartOptions
from emberd.system import background, os_errors, ownership
from emberd.system.log_rules import Diagnosis

_PORT_TRIES: Final = 5
_KEY_BYTES: Final = 24
_WAITING_FOR_GPU: Final = "waiting for the GPU"
_HUNG: Final = Diagnosis(
    "The server stopped answering while its process was running, and was ended",
    "The next request starts a new one.",
)


class Supervisor(ProcessSupervisor):
    """Runs one server, from its start to its end."""

    def __init__(self, folder: Path, own: Record, alive_fd: int, verify: Verify) -> None:
        """Take over ``folder``.

        Args:
            folder: The server's state folder.
            own: The record that the starting process wrote.
            alive_fd: Descriptor that holds the liveness lock.
            verify: See ``Verify``.
        """
        super().__init__(folder, own, alive_fd)
        self._verify = verify
        self._gpu_locks = ExitStack()
        # Read now: an environment may be upgraded or removed while the supervisor runs.
        self.engine.diagnose(None, "")

    @property
    def engine(self) -> engines.Engine:
        """The engine of the server."""
        return engines.load(self.record.engine or "")

    # -- start --------------------------------------------------------------------------

    def run(self) -> None:
        """Start the server, run it until it ends, and leave nothing behind."""
        # Held until the server is ready or has ended, in every case: another start would count the
        # memory of a server that is ending as in use.
        with self._gpu_locks:
            super().run()

    def _supervise(self) -> None:
        if self._start(self._gpu_locks):
            self._gpu_locks.close()
            self._serve()

    def _start(self, gpu_locks: ExitStack) -> bool:
        """Start the server; return whether it is ready."""
        for tries_left in reversed(range(_PORT_TRIES)):
            try:
                diagnosis = self._start_once(gpu_locks)
            except StartError as error:
                diagnosis = Diagnosis(error.cause, error.advice)
            except (EmberdError, OSError) as error:
                diagnosis = Diagnosis(str(error), os_errors.advice(error))
            if diagnosis is None:
                break
            may_retry = diagnosis.port_taken and self.record.options.port is None
            if not (may_retry and tries_left):
                self._fail(diagnosis)
                return False
            self._note(history.PORT_TAKEN, cause=diagnosis.cause)
            self._end_server()
            self._publish_if_possible(gpu_memory=None)
            gpu_locks.close()
        if not self._stop_requested:
            return True
        self._stop("stopped on request", by_user=True)
        return False

    def _start_once(self, gpu_locks: ExitStack) -> Diagnosis | None:
        # Locked before the plan is made, because the plan measures the free memory.
        gpus = self._lock_gpus(gpu_locks)
        if self._stop_requested:
            return None
        launch, plan, server = self._launch(gpus)
        outcome = self._await_ready(
            StartMonitor(
                server,
                self.engine,
                launch.port,
                plan.silence_s,
                lambda url, listener: self._verify(url, launch.api_key, self.record.spec, listener),
                has_ready=plan.has_ready,
            )
        )
        if not isinstance(outcome, Endpoint):
            return outcome
        if problem := self._problem(plan, outcome):
            return problem
        # The last look of a start: after a kill, nothing else shows which memory the server had.
        server.update_memory(at_once=True)
        # Before it can be seen, like each event: who sees the state also finds the event.
        self._note(history.READY, url=outcome.url, device=plan.device)
        self._publish(
            state=State.READY,
            endpoint=replace(outcome, canary=()),
            device=plan.device,
            attempts=0,
            progress="",
        )
        if plan.gpu_usage is not None:
            # Not waited for: the driver may not answer. Without a thread it is left out.
            with suppress(EmberdError):
                background.run(partial(plan.gpu_usage.compare, server.members()), "gpu-usage")
        return None

    def _await_ready(self, start: StartMonitor) -> Endpoint | Diagnosis | None:
        """Return the verified endpoint, or why the start failed; None if a stop was requested."""
        while not self._stop_requested:
            self._wait(self.record.timing.poll_s)
            if (outcome := start.check()) is not None:
                return outcome
            if start.progress != self.record.progress:
                self._publish_if_possible(progress=start.progress)
        return None

    def _problem(self, plan: Plan, endpoint: Endpoint) -> Diagnosis | None:
        """Return why a verified server must not be used for the spec; None if it may."""
        spec, engine = self.record.spec, self.record.engine or ""
        if model_files.content_hash(spec.model) != spec.content and spec.content is not None:
            return Diagnosis(f"The files of {spec.model} changed during the start", "Run it again.")
        # Checked again: most files of a model on the hub are known only after the download.
        if problem := self.engine.why_unsupported(spec):
            cause, _, advice = problem.partition(". ")
            return Diagnosis(f"The engine {engine} cannot serve {spec.model}: {cause}", advice)
        if not spec.accepts(engine, plan.device, endpoint.context_tokens, deterministic=True):
            return Diagnosis(
                f"The server runs on {plan.device} with texts of up to {endpoint.context_tokens} "
                f"tokens, but device={spec.device}, context_tokens={spec.context_tokens} were "
                f"requested",
                "Request a shorter context or another device, or use another engine.",
            )
        reported = not spec.deterministic or probe.is_deterministic(
            endpoint.url, endpoint.api_key, listener=endpoint.listener
        )
        if reported is None:
            return Diagnosis(
                f"deterministic=True was requested, but {endpoint.url}{probe.SERVER_INFO}, which "
                f"reports it, did not answer or failed",
                "Run it again, and see the log of the server.",
            )
        if not reported:
            return Diagnosis(
                f"deterministic=True was requested, but a server of the engine {engine} does not "
                f"report that it computes deterministically",
                "Use the engine sglang (on a GPU) or transformers, or omit deterministic=True.",
            )
        return None

    def _launch(self, gpus: tuple[str, ...]) -> tuple[Launch, Plan, process_tree.ServerProcess]:
        """Start the engine, on a port that is free now and with a new key."""
        options, opened = self.record.options, None
        if self.engine.takes_descriptor:
            opened = ports.listen(options.port)
        # Closed here in any case: the port must be free again as soon as the server ends.
        with opened or nullcontext():
            launch = Launch(
                port=opened.getsockname()[1] if opened else ports.choose(options.port),
                # Only digits: SGLang splits its configuration file into words of a command line,
                # and a key that began with a dash would be parsed as an option.
                api_key=None if options.no_auth else secrets.token_hex(_KEY_BYTES),
                start_id=self.record.start_id,
                folder=str(self.folder),
                home=str(paths.Home.of(self.folder).root),
                options=options,
                exclusive_resources=gpus,
                servers=self._other_servers(),
                descriptor=opened.fileno() if opened else None,
            )
            plan = self.engine.plan(self.record.spec, launch)
            # Recorded before it is made: a folder that no record names is never removed.
            scratch = cleanup.scratch_path(self.record.start_id)
            self._publish(
                drain_s=plan.drain_s,
                notes=tuple(plan.notes),
                scratch=scratch,
                gpu_memory=plan.gpu_memory,
            )
            cleanup.make_scratch(scratch)
            for name, content in plan.files.items():
                paths.create_file(self.folder / name, content.encode())
            self._server = server = process_tree.ServerProcess(
                plan.command,
                plan.environment,
                f"{self.folder}:{self.record.start_id}",
                self.folder / paths.LOG_NAME,
                scratch,
                inherited=() if launch.descriptor is None else (launch.descriptor,),
                memory=plan.memory,
            )
        self._read_ahead(launch.options)
        return launch, plan, server

    def _read_ahead(self, options: StartOptions) -> None:
        spec = self.record.spec
        if isinstance(self.engine, EnvironmentEngine) and not (
            model_files.is_folder(spec.model) or self.engine.uses_hub_cache(spec, options)
        ):
            return  # the server reads other files
        # Not waited for. Without a thread it is left out: the server reads the weights anyway.
        with suppress(EmberdError):
            background.run(
                partial(weight_files.read_ahead, spec.model, spec.revision), "read-ahead"
            )

    def _lock_gpus(self, held: ExitStack) -> tuple[str, ...]:
        lock_folder = ownership.make_private(paths.Home.of(self.folder).gpu_locks)
        names: tuple[str, ...] = ()
        waits = False
        while not self._stop_requested:
            # Chosen again each time: the best GPU may have become full during the wait.
            names = tuple(
                self.engine.exclusive_resources(
                    self.record.spec, self.record.options, self._other_servers()
                )
            )
            if not names:
                break
            seconds = self.record.timing.tick_s if waits else 0
            try:
                held.enter_context(locks.gpu_locks(lock_folder, names, seconds))
                break
            except LockTimeoutError:
                waits = True
                self._publish_if_possible(progress=f"{_WAITING_FOR_GPU} ({', '.join(names)})")
                self._wait(0)
        if waits:
            self._publish_if_possible(progress=state.PLANNING)
        return names

    def _other_servers(self) -> list[GpuServer]:
        return gpu_servers.of_home(paths.Home.of(self.folder).root, without=self.folder)

    # -- running ------------------------------------------------------------------------

    def _serve(self) -> None:
        endpoint, server, timing = self.record.endpoint, self._server, self.record.timing
        if endpoint is None or server is None:
            return
        idle = IdleMonitor(self.folder)
        health = HangMonitor(
            self.folder,
            lambda: probe.is_healthy(endpoint.url, listener=endpoint.listener),
            timing.failed_probes,
            timing.probe_s,
        )
        while True:
            self._wait(timing.tick_s)
            if self._stop_requested:
                self._stop("stopped on request", by_user=True)
                return
            if (code := server.reap()) is not None:
                self._fail(self.engine.diagnose(code, server.log()), was_ready=True)
                return
            idle_timeout_s = self._files.idle_timeout.seconds()
            if not (health.is_active or idle.is_reading_due(idle_timeout_s, timing.look_s)):
                continue
            activity = probe.activity(endpoint.url, endpoint.api_key, listener=endpoint.listener)
            idle.observe(activity)
            if health.is_hung(activity):
                self._fail(_HUNG, was_ready=True, is_hung=True)
                return
            if idle.seconds() >= idle_timeout_s:
                self._stop(f"not used for {idle.seconds():.0f} s", by_user=False)
                return


def main(arguments: list[str], verify: Verify) -> int:
    """Run the supervisor that ``spawn.run_supervisor`` has started.

    Args:
        arguments: See ``process_supervisor.main``.
        verify: See ``Verify``.

    Returns:
        The exit code.
    """

    def make(folder: Path, own: Record, alive_fd: int) -> Supervisor:
        process_tree.become_subreaper()
        return Supervisor(folder, own, alive_fd, verify)

    return process_supervisor.main(arguments, make)

"""The gateway in the background, as its users see it: started once, replaced, shown and stopped.

It has a supervisor like a server, in the folder ``gateway`` beside those of the servers, with the
same start lock, liveness lock, record and log. A start, and a replacement of a running one, is
requested by a file in that folder, which the supervisor reads and removes at once: it contains the
environment of the gateway, which may contain keys. Whatever was not read, because a process was
killed, is removed by the supervisor at its end, by the next start, or by a stop.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

import msgspec

from emberd.env import Places
from emberd.errors import (
    LockTimeoutError,
    SettingError,
    StartError,
    StartTimeoutError,
    StateFolderError,
)
from emberd.gateway.addresses import Addresses
from emberd.manager import (
    State,
    Timing,
    cleanup,
    locks,
    lost_records,
    paths,
    spawn,
    state,
    stopping,
)
from emberd.manager.gateway_facts import GatewayFacts
from emberd.manager.paths import Home
from emberd.manager.state import Record, ServerSnapshot
from emberd.settings import ServerSpec
from emberd.system import atomic_file, os_errors, ownership, process_env, processes, redaction

DRAIN_S: Final = 60.0
"""How long requests in flight may take after ``emberd stop``."""

_REQUEST_NAME: Final = "request.json"
_RUNNING: Final = (State.STARTING, State.READY)
_NOT_PASSED_ON: Final = (processes.MARK, "PYTHONINSPECT", "PYTHONSTARTUP")
_typed: Final = os_errors.raised_as(
    StateFolderError, "EMBERD_HOME sets the folder of emberd's files."
)


def _environment() -> dict[str, str]:
    """Return this process's environment, for a gateway that imports what this process does."""
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED_ON}
    return {**kept, "PYTHONPATH": os.pathsep.join(spawn.import_path())}


@dataclass(frozen=True, slots=True)
class GatewayRequest:
    """What a gateway in the background is to be.

    Attributes:
        arguments: Arguments of ``emberd serve``, without paths that depend on a working folder.
        models: The models that these mean.
        addresses: Where it listens.
        id: Random id.
        python: The interpreter that runs it.
        working_folder: The folder in which it runs.
        environment: Its environment, which may contain keys.
        timeout_s: When it replaces another one: how long it may take until it is ready.
    """

    arguments: tuple[str, ...]
    models: tuple[str, ...]
    addresses: Addresses
    id: str = field(default_factory=processes.new_start_id)
    python: str = field(default_factory=process_env.interpreter)
    working_folder: str = field(default_factory=os.getcwd)
    environment: dict[str, str] = field(default_factory=_environment, repr=False)
    timeout_s: float = 0.0

    @property
    def command(self) -> list[str]:
        """The command that serves it."""
        return [self.python, "-P", "-m", "emberd", "serve", *self.arguments]

    @property
    def facts(self) -> GatewayFacts:
        """What the record says of it before it runs."""
        return GatewayFacts(self.id, self.arguments, self.models, repr(self.addresses))


@dataclass(frozen=True, slots=True)
class GatewayStatus:
    """What is known about the gateway in the background.

    Attributes:
        state: Where it is in its life cycle.
        seconds: How long it has been in this state.
        models: The models that it serves.
        arguments: Its arguments of ``emberd serve``.
        urls: Its addresses while it listens.
        pid: Its process while it runs.
        supervisor_pid: Process id of its supervisor while that runs.
        restarts: How often its process ended and was replaced.
        detail: Progress, failure or reason, in words.
        log_path: Path of its log.
        start_id: Id of this start of its supervisor.
    """

    state: State
    seconds: float
    models: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    pid: int | None = None
    supervisor_pid: int | None = None
    restarts: int = 0
    detail: str = ""
    log_path: str = ""
    start_id: str = ""

    @property
    def is_running(self) -> bool:
        """Whether it has processes."""
        return self.state in (*state.RUNNING, State.UNKNOWN)


class _GivenUpError(Exception):
    """The gateway that was to be replaced has failed, and its supervisor has ended."""


OnProgress = Callable[[str, float], None]
"""Called with what a starting gateway does, and how long the start has taken, in seconds."""


class BackgroundGateway:
    """The gateway of a home; at most one runs, however many processes ask for it."""

    def __init__(self, timing: Timing | None = None) -> None:
        """Use ``EMBERD_HOME``; no file is read or written yet.

        Args:
            timing: Periods and deadlines, also of the supervisor.
        """
        # The real path, as for servers.
        self._home = Home(Path(os.path.realpath(Places.resolve().home)))
        self._folder = self._home.gateway
        self._timing = timing or Timing()

    @_typed
    def status(self) -> GatewayStatus | None:
        """Return what is known about the gateway; None if none was started since the boot."""
        deadline_s = time.monotonic() + self._timing.record_s
        return _status(state.settled_snapshot(self._folder, deadline_s, self._timing.poll_s))

    @_typed
    def start(
        self,
        request: GatewayRequest,
        *,
        replaces: bool = False,
        timeout_s: float,
        on_progress: OnProgress | None = None,
    ) -> tuple[GatewayStatus, bool]:
        """Return the gateway once it is ready, and whether this call started it.

        Args:
            request: What it is to be.
            replaces: Whether it takes the place of a running one, without a lost request.
            timeout_s: How long to wait; the start continues afterwards.
            on_progress: Called about once a second.

        Raises:
            SettingError: Another one runs, and may not be replaced, or listens elsewhere.
            StartError: It was started and failed.
            StartTimeoutError: ``timeout_s`` expired.
            LockTimeoutError: Another process holds the start lock for too long.
            StateFolderError: The home cannot be used.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            seen = lost_records.await_record(self._folder, self._timing, deadline)
            if seen.record is not None and seen.state in _RUNNING and not replaces:
                _check_same(seen.record, request)
                return self._awaited(seen.record.start_id, deadline, on_progress), False
            ownership.make_private(self._home.machine)
            ownership.make_private(self._folder.parent)
            ownership.make_private(self._folder)
            patience_s = min(self._timing.lock_s, max(0.0, deadline - time.monotonic()))
            with locks.start_lock(self._folder, patience_s):
                seen = lost_records.await_record(self._folder, self._timing, deadline)
                if seen.record is not None and seen.state in _RUNNING:
                    if replaces:
                        # Under the lock: the next replacement begins when this one is done.
                        found = self._replaced(seen.record, request, deadline, on_progress)
                        if found is not None:
                            return found, True
                    continue
                if not seen.alive:
                    start_id = self._begin(request)
                    break
            if time.monotonic() > deadline:
                raise StartTimeoutError(
                    "The last gateway still answers its requests in flight. Try again later; "
                    "`emberd status` shows its state."
                )
            time.sleep(self._timing.poll_s)
        return self._awaited(start_id, deadline, on_progress), True

    @_typed
    def stop(self) -> GatewayStatus | None:
        """Stop the gateway, after its requests in flight, and return its last status.

        Servers that it has started continue to run until they are idle.

        Raises:
            StartError: Some of its processes cannot be ended.
            StateFolderError: Its folder cannot be used.
        """
        deadline_s = time.monotonic() + self._timing.record_s
        was = _status(state.settled_snapshot(self._folder, deadline_s, self._timing.poll_s))
        marks = lost_records.marks_read_once()
        if stopping.stop(self._folder, self._timing, deadline_s, marks) is None:
            was = None
        if self._folder.is_dir():
            # Another process that starts one holds the lock, and cleans up itself.
            with suppress(LockTimeoutError), locks.start_lock(self._folder, timeout_s=0):
                if not locks.is_alive(self._folder):
                    discard_request(self._folder)
                    cleanup.clean_up(self._folder, self._timing)
        return was

    def _begin(self, request: GatewayRequest) -> str:
        """Start a supervisor; the start lock is held."""
        cleanup.clean_up(self._folder, self._timing)
        self._write(request)

        def make(start_id: str, log: Path) -> Record:
            return Record(
                state=State.STARTING,
                start_id=start_id,
                spec=ServerSpec("gateway"),
                timing=self._timing,
                since_s=time.monotonic(),
                attempts=1,
                drain_s=DRAIN_S,
                log_path=str(log),
                progress="starting",
                gateway=request.facts,
            )

        return spawn.start(self._folder, self._timing, make, spawn.GATEWAY_MODULE)

    def _replaced(
        self, own: Record, request: GatewayRequest, deadline: float, on_progress: OnProgress | None
    ) -> GatewayStatus | None:
        """Have the supervisor replace the gateway, and return the new one; the lock is held.

        Returns:
            None if the supervisor has given up the running one, and does not begin another.
        """
        if own.gateway is not None and own.gateway.addresses != request.facts.addresses:
            raise SettingError(
                f"The gateway that runs was started with `{command_line(own.gateway.arguments)}`, "
                f"and one with other addresses cannot replace it. Run `emberd stop gateway` first."
            )
        timeout_s = max(0.0, deadline - time.monotonic())
        self._write(replace(request, timeout_s=timeout_s))
        try:
            # The supervisor answers at the deadline.
            answered = deadline + self._timing.record_s
            return self._awaited(own.start_id, answered, on_progress, request.id)
        except _GivenUpError:
            return None
        finally:
            discard_request(self._folder)

    def _write(self, request: GatewayRequest) -> None:
        environment = {**request.environment, "EMBERD_HOME": str(self._home.root)}
        content = json.dumps(asdict(replace(request, environment=environment)), default=str)
        discard_request(self._folder)
        # In one step: the supervisor of a running gateway may look for it at any moment. Without a
        # name before that: nothing would remove a part that a killed process leaves.
        file = self._folder / _REQUEST_NAME
        with atomic_file.replacing(file, mode=0o600, follow_links=False, unnamed=True) as opened:
            opened.write(content.encode())

    def _awaited(
        self,
        start_id: str,
        deadline: float,
        on_progress: OnProgress | None,
        replacement: str | None = None,
    ) -> GatewayStatus:
        """Return the gateway once it is ready.

        Args:
            start_id: The id of its supervisor's start.
            deadline: When to give up, on the monotonic clock.
            on_progress: See ``start``.
            replacement: Id of the request that is to be served; None for any.
        """
        began = reported = time.monotonic()
        while True:
            seen = lost_records.await_record(self._folder, self._timing, deadline)
            own, now = seen.record, time.monotonic()
            if own is None or own.gateway is None or own.start_id != start_id:
                raise StartError("The gateway was stopped during its start", advice="Try again.")
            if replacement is not None and own.gateway.refused == replacement:
                advice = "`emberd status` shows the gateway that ran before."
                if seen.state is State.READY:
                    advice = "The gateway that ran before continues to run."
                raise StartError(own.gateway.refusal, advice=advice, log_path=own.log_path)
            if seen.state is State.FAILED:
                if replacement is not None:
                    raise _GivenUpError
                raise own.start_error()
            if seen.state not in _RUNNING:
                why = own.reason or "its supervisor was killed"
                raise StartError(
                    f"The gateway ended during its start: {why}",
                    advice="Try again.",
                    log_path=own.log_path,
                )
            is_requested = replacement in (None, own.gateway.request)
            if seen.state is State.READY and is_requested and (found := _status(seen)):
                return found
            if now > deadline:
                raise StartTimeoutError(
                    f"The gateway is still starting after {now - began:.0f} s ({own.progress}). "
                    f"The start continues: call again to wait for it, or give a longer "
                    f"start_timeout. Log: {own.log_path}"
                )
            if on_progress and now - reported >= 1:
                reported = now
                on_progress(own.progress, now - began)
            time.sleep(self._timing.poll_s)


def discard_request(folder: Path) -> None:
    """Remove the request in a state folder, if it was not read."""
    paths.remove(folder / _REQUEST_NAME)


def read_request(folder: Path) -> GatewayRequest | None:
    """Return the request in a state folder, and remove it; None if there is none.

    Raises:
        StateFolderError: It cannot be read.
        StartError: It is damaged.
    """
    file = folder / _REQUEST_NAME
    content = paths.read_file(file)
    if content is None:
        return None
    discard_request(folder)
    try:
        return msgspec.convert(
            json.loads(content), GatewayRequest, dec_hook=lambda kind, value: kind(value)
        )
    except (ValueError, msgspec.ValidationError):
        # Without the cause, which may contain a key.
        raise StartError(f"{file} is damaged", advice="Try again.") from None


def command_line(arguments: tuple[str, ...]) -> str:
    """Return the command that starts a gateway with these arguments, without the secrets in it."""
    return shlex.join(["emberd", "serve", "--background", *without_secrets(arguments)])


def without_secrets(arguments: Sequence[str]) -> list[str]:
    """Return arguments as they may be shown: one may be a secret in the wrong place."""
    return redaction.words(arguments, redaction.redactor())


def _status(seen: ServerSnapshot) -> GatewayStatus | None:
    known = lost_records.server_status(seen, lost_records.marks_read_once())
    if known is None:
        return None
    facts = seen.record.gateway if seen.record is not None else None
    is_running = known.state in state.RUNNING
    return GatewayStatus(
        state=known.state,
        seconds=known.seconds,
        models=facts.models if facts else (),
        arguments=facts.arguments if facts else (),
        urls=facts.urls if facts and is_running else (),
        pid=facts.pid if facts and is_running else None,
        supervisor_pid=known.supervisor_pid,
        restarts=facts.restarts if facts else 0,
        detail=known.detail,
        log_path=known.log_path,
        start_id=known.start_id,
    )


def _check_same(own: Record, request: GatewayRequest) -> None:
    """Raise if the running gateway is another one than the requested one.

    Raises:
        SettingError: It is.
    """
    facts = own.gateway
    if facts is None or (facts.arguments, facts.models) == (request.arguments, request.models):
        return
    raise SettingError(
        f"A gateway already runs in the background with `{command_line(facts.arguments)}` and "
        f"serves {', '.join(facts.models)}. Use that one, replace it by the same command with "
        f"--replace, or end it with `emberd stop gateway`."
    )

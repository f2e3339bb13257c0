"""The supervisor: parent of one server, sole writer of its record, and the last to leave.

::

    STARTING ──ready and verified──▶ READY ──idle, or asked to──▶ STOPPING ──▶ ABSENT
        └── died, silent ──▶ FAILED ◀── died, wedged ──┘

It holds the proof of life from its first moment to its last, so whoever finds that free knows
that the record's author is gone. It must end with nothing of its server left behind.
"""

from __future__ import annotations

import errno
import importlib
import os
import select
import signal
import time
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Final

from emberd import engines, model_files, probe
from emberd.endpoint import Endpoint
from emberd.engines.base import Diagnosis, Launch, Plan
from emberd.errors import EmberdError, LockTimeoutError, StartError
from emberd.manager import alive, child, folders, idle, leavings, locks, ports, record
from emberd.manager.record import Failure, Record, State
from emberd.manager.server import Verify
from emberd.manager.starting import Start
from emberd.manager.statefiles import StateFiles, tell
from emberd.manager.suspicion import Suspicion
from emberd.settings import ServerSpec
from emberd.system import processes

_PORT_TRIES: Final = 5
_KEY_BYTES: Final = 24
_ADVICE: Final = {
    errno.ENOSPC: "Free space on that disk: `df -h`.",
    errno.EDQUOT: "The quota of that disk is used up: free space.",
    errno.EAGAIN: "Too many processes: look at `ulimit -u`, or at the container's limit.",
    errno.ENOMEM: "Free some memory.",
    errno.EACCES: "Look at the owner and the mode of what is named.",
}
_IDLE_REASON: Final = "nobody used it for {seconds:.0f} s"


class FolderGone(Exception):  # noqa: N818 - not an error: somebody removed what we keep
    """The state folder was removed or replaced: there is nobody left to keep the server for."""


class Supervisor:
    """Keeps one server, from its start to its end."""

    def __init__(self, folder: Path, own: Record, alive_fd: int, verify: Verify) -> None:
        """Take over ``folder``.

        Args:
            folder: The server's state folder.
            own: The record that the starter wrote.
            alive_fd: Descriptor that holds the proof of life.
            verify: See ``Verify``.
        """
        self.folder = folder
        self.record = replace(own, supervisor=processes.current())
        self.verify = verify
        self.server: child.ServerProcess | None = None
        self.plan: Plan | None = None
        self._alive_fd = alive_fd
        # Imported now: an environment may be upgraded or removed under a living supervisor.
        importlib.import_module("prometheus_client.parser")
        self._stop_asked = False
        self._shared_memory = leavings.SharedMemory(folder)
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._files = StateFiles(folder, alive_fd)

    # -- what it hears ------------------------------------------------------------------

    def listen(self) -> None:
        """Install the signal handlers; a signal ends any ``wait`` at once."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._ask_to_stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def wait(self, seconds: float) -> None:
        """Wait until a signal comes, or for ``seconds``; then look whether the folder is there.

        Raises:
            FolderGone: It is not, or another one stands in its place.
        """
        if select.select([self._wake_read], [], [], seconds)[0]:
            os.read(self._wake_read, select.PIPE_BUF)
        if self.server is not None and self.record.state is State.STARTING:
            self._shared_memory.look(self.server.members)
        if not alive.is_same_file(self._alive_fd, self.folder):
            raise FolderGone

    @property
    def engine(self) -> engines.Engine:
        """The kind of server that is kept."""
        return engines.load(self.record.engine or "")

    @property
    def stop_asked(self) -> bool:
        """Whether somebody asked for the server's end."""
        return self._stop_asked

    def _ask_to_stop(self, signum: int, frame: FrameType | None) -> None:
        self._stop_asked = True

    # -- what it says -------------------------------------------------------------------

    def publish(self, **changes: object) -> None:
        """Replace fields of the record; a new state gets a new time.

        Raises:
            FolderGone: The folder there now is another supervisor's.
            OSError: The disk is full, or the like.
        """
        if not alive.is_same_file(self._alive_fd, self.folder):
            raise FolderGone
        if changes.get("state", self.record.state) != self.record.state:
            changes["since_s"] = time.monotonic()
        self.record = replace(self.record, **changes)  # type: ignore[arg-type]
        self._files.publish(self.record)

    def publish_if_possible(self, **changes: object) -> None:
        """Do as ``publish``; a full disk does not keep a server from its orderly end."""
        try:
            self.publish(**changes)
        except OSError as error:
            tell(f"the record cannot be written: {error}")

    @property
    def log_bytes(self) -> int:
        """How much the server has written since its start."""
        return 0 if self.server is None else self.server.log_bytes

    def log(self) -> str:
        """Return the end of what the server wrote since its start."""
        return "" if self.server is None else self.server.log()

    # -- its life -----------------------------------------------------------------------

    def run(self) -> None:
        """Start the server, keep it, and leave nothing behind."""
        try:
            self.publish()
            self._files.watch(self.record.timing.tick_s)
            if self._start():
                self._serve()
        except FolderGone:
            # Nothing is written: the folder there now, if any, is another supervisor's.
            self._end_server()
        except Exception as error:
            # Only what nobody foresaw comes here; the server is not left to it.
            self._fail(
                Diagnosis(f"The supervisor failed: {error!r}", "Please report this as a bug."),
                starting=self.record.state is State.STARTING,
            )
            raise

    def _start(self) -> bool:
        claims = folders.make_private(self.folder.parent.parent / "claims")
        diagnosis: Diagnosis | None = None
        for _ in range(_PORT_TRIES):
            try:
                diagnosis = self._start_once(claims)
            except (EmberdError, OSError) as error:
                diagnosis = _diagnosis(error)
            if diagnosis is None:
                return not self.stop_asked or self._stop_for_person()
            if not diagnosis.port_taken or self.record.options.port is not None:
                break
            self._end_server()
        if diagnosis is not None:
            self._fail(diagnosis)
        return False

    def _start_once(self, claims: Path) -> Diagnosis | None:
        with ExitStack() as held:
            # Claimed before the plan is made: it is the plan that measures what is free.
            claimed = self._claim(held, claims)
            if self.stop_asked:
                return None
            launch, plan = self._launch(claimed)
            outcome = Start(self, launch).run()
        if isinstance(outcome, Diagnosis):
            return outcome
        if outcome is not None:
            spec, engine = self.record.spec, self.record.engine or ""
            if model_files.content_hash(spec.model) != spec.content and spec.content is not None:
                return Diagnosis(f"The files of {spec.model} changed meanwhile", "Run it again.")
            # Asked again: of a model on the hub, most files are here only since the download.
            if problem := self.engine.unfit(spec):
                return _refused(spec, engine, problem)
            if not spec.accepts(engine, plan.device, outcome.context_tokens):
                return _unfit(spec, plan.device, outcome)
            self.publish(
                state=State.READY,
                endpoint=replace(outcome, canary=()),
                device=plan.device,
                attempts=0,
                progress="",
            )
        return None

    def _launch(self, claimed: tuple[str, ...]) -> tuple[Launch, Plan]:
        """Start the engine, on a port and with a key that no start has had before."""
        options, opened = self.record.options, None
        if self.engine.takes_descriptor:
            opened = ports.listening(options.port)
        # Closed here in any case: the port must be free again as soon as the server ends.
        with opened or nullcontext():
            launch = Launch(
                port=opened.getsockname()[1] if opened else ports.choose(options.port),
                api_key=None if options.no_auth else _key(),
                fingerprint=self.record.start_id,
                folder=str(self.folder),
                options=options,
                claimed=claimed,
                descriptor=opened.fileno() if opened else None,
            )
            self.plan = plan = self.engine.plan(self.record.spec, launch)
            # In the record before it is made: a folder that no record names is never removed.
            scratch = leavings.scratch(self.record.start_id)
            self.publish(drain_s=plan.drain_s, notes=tuple(plan.notes), scratch=scratch)
            leavings.make(scratch)
            self._shared_memory.begin()
            folders.write_private(self.folder, plan.files)
            self.server = child.ServerProcess(
                plan.command,
                {**plan.environment, "TMPDIR": scratch},
                f"{self.folder}:{self.record.start_id}",
                self.folder / folders.LOG_NAME,
                inherited=() if launch.descriptor is None else (launch.descriptor,),
            )
        return launch, plan

    def _claim(self, held: ExitStack, claims: Path) -> tuple[str, ...]:
        while not self.stop_asked:
            # Asked each time: what was best when the wait began may be full when it ends.
            names = self.engine.claims(self.record.spec, self.record.options)
            if not names:
                break
            try:
                held.enter_context(locks.claims(claims, names, self.record.timing.tick_s))
            except LockTimeoutError:
                self.publish(progress=f"waiting for {', '.join(names)}")
                self.wait(0)
            else:
                return tuple(names)
        return ()

    def _serve(self) -> None:
        endpoint, timing = self.record.endpoint, self.record.timing
        if endpoint is None:
            return
        idleness = idle.Idleness(self.folder)
        suspicion = Suspicion(
            self.folder,
            lambda: probe.is_healthy(endpoint.url, listener=endpoint.listener),
            timing.suspicion_probes,
            timing.suspicion_s,
        )
        while True:
            self.wait(timing.tick_s)
            if self.stop_asked:
                self._stop_for_person()
                return
            if (code := self._reap()) is not None:
                self._fail(self.engine.diagnose(code, self.log()), starting=False)
                return
            asked_for_s = self._files.asked.seconds()
            if not (suspicion.is_there or idleness.must_look(asked_for_s, timing.look_s)):
                continue
            if self.server is not None:
                self._shared_memory.look(self.server.members)
            activity = probe.activity(endpoint.url, endpoint.api_key, listener=endpoint.listener)
            idleness.observe(activity)
            if suspicion.is_wedged(activity):
                self._fail(_wedged(), starting=False)
                return
            if asked_for_s is not None and idleness.seconds() >= asked_for_s:
                self._stop(_IDLE_REASON.format(seconds=idleness.seconds()), by_person=False)
                return

    # -- its end ------------------------------------------------------------------------

    def _stop_for_person(self) -> bool:
        return self._stop("a person stopped it", by_person=True)

    def _stop(self, reason: str, *, by_person: bool) -> bool:
        # Published first: from here on nobody is sent to this server any more.
        self.publish_if_possible(
            state=State.STOPPING, reason=reason, stopped_by_person=by_person, progress=""
        )
        self._drain()
        self._end_server()
        self.publish_if_possible(state=State.ABSENT, endpoint=None)
        return False

    def _drain(self) -> None:
        if self.server is None or self.plan is None:
            return
        self.server.terminate()
        deadline = time.monotonic() + self.plan.drain_s
        while self.server.reap() is None and (left := deadline - time.monotonic()) > 0:
            self.wait(min(left, self.record.timing.tick_s))

    def _fail(self, diagnosis: Diagnosis, *, starting: bool = True) -> None:
        if not starting:
            # Nobody is to be sent to it while what it left is ended.
            self.publish_if_possible(state=State.STOPPING, reason=diagnosis.cause)
        self._end_server()
        failure = Failure(
            diagnosis.cause, diagnosis.advice, time.monotonic(), starting, diagnosis.killed
        )
        self.publish_if_possible(state=State.FAILED, failure=failure, endpoint=None, progress="")

    def _end_server(self) -> None:
        if self.server is not None:
            self._shared_memory.look(self.server.members, at_once=True)
            if not self.server.kill_all(self.record.timing.kill_s):
                tell("processes of the server are left that cannot be killed")
        leavings.remove(self.folder, self.record.scratch, self._shared_memory.known)

    def _reap(self) -> int | None:
        return None if self.server is None else self.server.reap()


def main(arguments: list[str], verify: Verify) -> int:
    """Be the supervisor that ``launch.start_supervisor`` asked for.

    Args:
        arguments: Folder, start_id, descriptor of the proof of life.
        verify: See ``Verify``.
    """
    # What the caller has blocked or ignored is inherited; a supervisor must hear all signals.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    folder, start_id, alive_fd = Path(arguments[0]), arguments[1], int(arguments[2])
    if os.fork():
        os._exit(0)
    # The server must not inherit it: it would hold the proof of life beyond its supervisor.
    os.set_inheritable(alive_fd, False)
    own = record.read(folder)
    if own is None or own.start_id != start_id:
        return 1
    child.become_subreaper()
    supervisor = Supervisor(folder, own, alive_fd, verify)
    supervisor.listen()
    supervisor.run()
    return 0


def _diagnosis(error: Exception) -> Diagnosis:
    if isinstance(error, StartError):
        return Diagnosis(error.cause, error.advice)
    number = error.errno if isinstance(error, OSError) else None
    return Diagnosis(str(error), _ADVICE.get(number or 0, ""))


def _key() -> str:
    import secrets

    # Digits alone: SGLang makes words of a command line of its file, and a key that begins with a
    # dash, as one of 64 in base64 does, would be taken for an option.
    return secrets.token_hex(_KEY_BYTES)


def _refused(spec: ServerSpec, engine: str, problem: str) -> Diagnosis:
    cause, _, advice = problem.partition(". ")
    return Diagnosis(f"The engine {engine} cannot serve {spec.model}: {cause}", advice)


def _unfit(spec: ServerSpec, device: str, endpoint: Endpoint) -> Diagnosis:
    return Diagnosis(
        f"The server runs on {device} with texts of up to {endpoint.context_tokens} tokens, and "
        f"device={spec.device}, context_tokens={spec.context_tokens} were asked for",
        "Ask for less, or for another engine.",
    )


def _wedged() -> Diagnosis:
    return Diagnosis(
        "The server stopped answering while its process was alive, and was ended",
        "The next request starts a new one.",
    )

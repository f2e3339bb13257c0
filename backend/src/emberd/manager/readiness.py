"""Readiness of a starting server, found out without blocking the supervisor."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from ipaddress import ip_address
from typing import Final, Protocol

from emberd import probe
from emberd.endpoint import Endpoint
from emberd.engines.base import Diagnosis, Engine, Launch, Plan
from emberd.errors import EmberdError
from emberd.manager.ports import HOST
from emberd.manager.process_tree import ServerProcess
from emberd.manager.state import Record, Verify
from emberd.system import listeners, processes
from emberd.system.listeners import Listener


class Readiness:
    """Polls one starting server until it is ready.

    ``/ready`` answers at once. SGLang before 0.5.20 has only ``/health``, which takes 1 to 20 s, so
    it is requested in a thread: the supervisor must still react to a stop or a dead server.
    """

    def __init__(self, url: str, listener: Listener) -> None:
        """Watch the server at ``url``, whose listening socket is ``listener``."""
        self._url = url
        self._listener = listener
        self._is_healthy = False
        self._thread: threading.Thread | None = None

    def is_ready(self) -> bool:
        """Return whether the server takes requests; call it again while it does not."""
        if self._is_healthy:
            return True
        if self._thread is not None and self._thread.is_alive():
            return False
        ready = probe.readiness(self._url, listener=self._listener)
        if ready is None:
            self._thread = threading.Thread(target=self._ask, daemon=True, name="emberd-health")
            self._thread.start()
        return bool(ready)

    def _ask(self) -> None:
        self._is_healthy = probe.is_healthy(self._url, listener=self._listener)


_ADDRESS: Final = ip_address(HOST)
_UNSEEN_S: Final = 2.0


class Starter(Protocol):
    """What a start needs of the supervisor whose server it watches."""

    record: Record
    plan: Plan | None
    server: ServerProcess | None
    verify: Verify

    @property
    def engine(self) -> Engine:
        """The kind of server."""

    @property
    def stop_asked(self) -> bool:
        """Whether somebody asked for the server's end."""

    def wait(self, seconds: float) -> None:
        """Wait until a signal comes, or for ``seconds``."""

    @property
    def log_bytes(self) -> int:
        """How much the server has written since its start."""

    def log(self) -> str:
        """Return the end of what the server wrote since its start."""

    def publish(self, **changes: object) -> None:
        """Replace fields of the record."""


class Start:
    """One start of one server."""

    def __init__(self, supervisor: Starter, launch: Launch) -> None:
        """Watch the server that ``supervisor`` has just started on the port of ``launch``."""
        self._supervisor = supervisor
        self._port = launch.port
        self._url = f"http://{HOST}:{launch.port}"
        self._key = launch.api_key
        self._listener: Listener | None = None
        self._moved_at_s = time.monotonic()
        self._unseen_since_s: float | None = None
        self._log_bytes = 0
        self._readiness: Readiness | None = None
        self._verification: _Verification | None = None

    def run(self) -> Endpoint | Diagnosis | None:
        """Return the verified endpoint, or why there is none; None when a stop was asked for."""
        while not self._supervisor.stop_asked:
            self._supervisor.wait(self._supervisor.record.timing.poll_s)
            outcome = self._look()
            if outcome is not None:
                return outcome
        return None

    def _look(self) -> Endpoint | Diagnosis | None:
        server, engine = self._supervisor.server, self._supervisor.engine
        code = None if server is None else server.reap()
        log = self._supervisor.log()
        if code is not None:
            return engine.diagnose(code, log)
        if engine.is_doomed(log):
            return engine.diagnose(None, log)
        self._publish_progress(engine.progress(log), self._supervisor.log_bytes)
        if self._is_silent():
            return engine.diagnose(None, log)
        return self._verified()

    def _publish_progress(self, progress: str, log_bytes: int) -> None:
        if log_bytes != self._log_bytes or progress != self._supervisor.record.progress:
            self._log_bytes = log_bytes
            self._moved_at_s = time.monotonic()
        if progress != self._supervisor.record.progress:
            self._supervisor.publish(progress=progress)

    def _is_silent(self) -> bool:
        plan = self._supervisor.plan
        return plan is not None and time.monotonic() - self._moved_at_s > plan.silence_s

    def _verified(self) -> Endpoint | Diagnosis | None:
        if self._listener is None or self._readiness is None:
            return self._prove()
        if self._verification is None:
            if self._readiness.is_ready():
                self._verification = _Verification(
                    self._supervisor, self._url, self._key, self._listener
                )
            return None
        return self._verification.outcome

    def _prove(self) -> Diagnosis | None:
        """See whether what listens on the port belongs to the server that was started.

        Until it does nothing is sent there. Names, versions and command lines can be read and
        repeated by every user of the machine; a listening socket cannot be copied.
        """
        server = self._supervisor.server
        if server is None:
            return None
        try:
            found = listeners.find_at(_ADDRESS, self._port, server.members)
            if found is None or self._accepts(found, server):
                return None
            again = listeners.find_at(_ADDRESS, self._port, server.members)
        except _UnseenError as error:
            return self._unseen(error)
        except OSError as error:
            return Diagnosis(
                f"The listening sockets of this machine cannot be read ({error}), so it cannot be "
                f"seen which server listens on port {self._port}",
                "Mount /proc, or allow netlink sockets (NETLINK_SOCK_DIAG).",
            )
        self._unseen_since_s = None
        if again != found or server.reap() is not None:
            return None  # it ended between the two looks
        return Diagnosis(
            f"Port {self._port} of {HOST} was taken by another process of user {found.uid} before "
            f"the server could listen there",
            "Run it again, or give another port.",
            port_taken=True,
        )

    def _accepts(self, found: Listener, server: ServerProcess) -> bool:
        """Return whether a descendant of the supervisor holds the listening socket; if so, keep it.

        Raises:
            _UnseenError: None of those that can be seen does, and not all can be seen.
        """
        members = server.members()
        try:
            # The kernel shows the descriptors of a zombie to root only, and it has none.
            is_held = listeners.is_held(found, [pid for pid in members if processes.identify(pid)])
        except PermissionError as error:
            raise _UnseenError(f"not all of its processes can be read ({error})") from error
        if is_held:
            self._listener = replace(found, owner_accepts=True)
            self._readiness = Readiness(self._url, self._listener)
        elif server.pid not in members and server.reap() is None:
            raise _UnseenError(f"its process {server.pid} is not seen in /proc")
        return is_held

    def _unseen(self, error: _UnseenError) -> Diagnosis | None:
        # A process that is ending cannot be read either, so this is no answer at once.
        self._unseen_since_s = self._unseen_since_s or time.monotonic()
        if time.monotonic() - self._unseen_since_s < _UNSEEN_S:
            return None
        return Diagnosis(
            f"It cannot be proven that the server listens on port {self._port}: {error}",
            "Let this user read /proc/PID of the processes that it starts. A Python with file "
            "capabilities hides them, and so do some mounts of /proc.",
        )


class _UnseenError(Exception):
    """Whether the server holds a socket cannot be seen, which does not mean that it does not."""


class _Verification:
    """The first real embedding, in a thread: a cold model may take long, and a stop must not."""

    def __init__(self, supervisor: Starter, url: str, key: str | None, listener: Listener) -> None:
        self.outcome: Endpoint | Diagnosis | None = None
        self._arguments = (url, key, supervisor.record.spec, listener)
        self._verify = supervisor.verify
        threading.Thread(target=self._run, daemon=True, name="emberd-verify").start()

    def _run(self) -> None:
        try:
            self.outcome = self._verify(*self._arguments)
        except EmberdError as error:
            self.outcome = Diagnosis(f"The server was started and is not fit for use: {error}")
        except Exception as error:  # noqa: BLE001 - those who wait must get an error
            self.outcome = Diagnosis(f"The first embedding failed: {error!r}", "Report this bug.")

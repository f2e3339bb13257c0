"""Whether a server that was started becomes ready, and whether one that was ready hangs.

``StartMonitor`` watches a start until the server is proven to hold the listening socket, accepts
requests and gives a right embedding. ``HangMonitor`` watches it afterwards: clients report a
request that timed out, and the supervisor then asks the model for a token. A server counts as hung
only after several such probes in a row have failed while its own counters stood still: from
outside, one long request looks the same as many. A process that has ended is noticed by
``supervisor``, its parent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from emberd import probe
from emberd.endpoint import Endpoint
from emberd.engines.base import Engine
from emberd.errors import EmberdError, ServerUnavailableError
from emberd.manager import paths
from emberd.manager.ports import HOST
from emberd.manager.process_tree import ServerProcess
from emberd.probe import Activity
from emberd.system import background, listeners, processes
from emberd.system.listeners import Listener
from emberd.system.log_rules import Diagnosis

_ADDRESS: Final = ip_address(HOST)
_UNSEEN_S: Final = 2.0
_ENDING_S: Final = 1.0
_REPORT: Final = "suspect"
VERIFYING: Final = "verifying"


def poll_readiness(url: str, listener: Listener, *, has_ready: bool) -> Iterator[bool]:
    """Yield whether the server at ``url`` accepts requests, without blocking the supervisor.

    ``/ready`` answers at once. Without it, ``/health`` is requested, in a thread, because it takes
    SGLang 1 to 20 s: the supervisor must still react to a stop or a dead server.
    """
    while True:
        if has_ready:
            yield probe.readiness(url, listener=listener) or False
            continue
        health = background.run(lambda: probe.is_healthy(url, listener=listener), "health")
        while not health.done():
            yield False
        yield health.result()


class StartMonitor:
    """Watches one start of one server.

    Attributes:
        progress: What the server is doing.
    """

    def __init__(
        self,
        server: ServerProcess,
        engine: Engine,
        port: int,
        silence_s: float,
        verify: Callable[[str, Listener], Endpoint],
        *,
        has_ready: bool = True,
    ) -> None:
        """Watch ``server``, which was just started and is to listen on ``port``.

        Args:
            server: Its processes.
            engine: Its engine.
            port: Its port on the loopback address.
            silence_s: The start has failed if it makes no progress for this many seconds.
            verify: Called with the URL and the proven listener; see ``Verify``.
            has_ready: See ``Plan``.
        """
        self.progress = ""
        self._server = server
        self._engine = engine
        self._port = port
        self._silence_s = silence_s
        self._verify = verify
        self._has_ready = has_ready
        self._url = f"http://{HOST}:{port}"
        self._moved_at_s = time.monotonic()
        self._log_bytes = 0
        self._unseen_since_s: float | None = None
        self._unavailable_since_s: float | None = None
        self._listener: Listener | None = None
        self._readiness: Iterator[bool] | None = None
        self._verification: Future[Endpoint] | None = None

    def check(self) -> Endpoint | Diagnosis | None:
        """Return the verified endpoint, or why the start failed; None while it continues."""
        code = self._server.reap()
        log = self._server.log()
        if code is not None or self._engine.has_failed(log) or self._has_stalled(log):
            return self._engine.diagnose(code, log)
        if (listener := self._listener) is None or self._readiness is None:
            return self._prove_listener()
        if self._verification is None:
            if next(self._readiness):
                # In a thread: the first embedding of a cold model may take long, and a stop must
                # not wait for it.
                self._verification = background.run(
                    lambda: self._verify(self._url, listener), "verify"
                )
                self.progress = VERIFYING  # now: it may be done at the next look
            return None
        if not self._verification.done():
            return None
        try:
            return self._verification.result()
        except EmberdError as error:
            if isinstance(error, ServerUnavailableError) and self._may_be_ending():
                return None
            return Diagnosis(f"The server started but failed verification: {error}")
        except Exception as error:  # noqa: BLE001 - waiting callers must get an error
            return Diagnosis(
                f"The verification of the server failed: {error!r}", "Report this bug."
            )

    def _may_be_ending(self) -> bool:
        """Return whether the server may have been killed: its connections break before it ends."""
        self._unavailable_since_s = self._unavailable_since_s or time.monotonic()
        return time.monotonic() - self._unavailable_since_s < _ENDING_S

    def _has_stalled(self, log: str) -> bool:
        progress = self._engine.progress(log) if self._verification is None else VERIFYING
        log_bytes = self._server.log_bytes
        if (progress, log_bytes) != (self.progress, self._log_bytes):
            self.progress, self._log_bytes = progress, log_bytes
            self._moved_at_s = time.monotonic()
        return time.monotonic() - self._moved_at_s > self._silence_s

    def _prove_listener(self) -> Diagnosis | None:
        """Check whether the listener on the port belongs to the server that was started.

        Until it does, nothing is sent there. Names, versions and command lines can be read and
        imitated by every user of the machine; a listening socket cannot be copied.
        """
        try:
            found = listeners.find_at(_ADDRESS, self._port, self._server.members)
            if found is None:
                return None
            is_held, unseen = self._holds(found)
            if is_held:
                self._listener = replace(found, owner_accepts=True)
                self._readiness = poll_readiness(
                    self._url, self._listener, has_ready=self._has_ready
                )
                return None
            if unseen:
                return self._diagnose_unseen(unseen)
            again = listeners.find_at(_ADDRESS, self._port, self._server.members)
        except OSError as error:
            return Diagnosis(
                f"The listening sockets of this machine cannot be read ({error}), so it is unknown "
                f"which server listens on port {self._port}",
                "Mount /proc, or allow netlink sockets (NETLINK_SOCK_DIAG).",
            )
        self._unseen_since_s = None
        if again != found or self._server.reap() is not None:
            return None  # it ended between the two checks
        return Diagnosis(
            f"Port {self._port} of {HOST} was taken by another process of user {found.uid} before "
            f"the server could listen there",
            "Run it again, or choose another port.",
            port_taken=True,
        )

    def _holds(self, found: Listener) -> tuple[bool, str]:
        """Return whether a descendant of the supervisor holds the listening socket.

        If no visible one does and not all are visible, it may; then the text says what is not.
        """
        members = self._server.members()
        try:
            # The kernel shows the descriptors of a zombie only to root, and it has none.
            if listeners.is_held(found, [pid for pid in members if processes.identify(pid)]):
                return True, ""
        except PermissionError as error:
            return False, f"not all of its processes can be read ({error})"
        if self._server.pid not in members and self._server.reap() is None:
            return False, f"its process {self._server.pid} is not visible in /proc"
        return False, ""

    def _diagnose_unseen(self, unseen: str) -> Diagnosis | None:
        # A process that is ending cannot be read either, so this is retried for a moment.
        self._unseen_since_s = self._unseen_since_s or time.monotonic()
        if time.monotonic() - self._unseen_since_s < _UNSEEN_S:
            return None
        return Diagnosis(
            f"Cannot prove that the server is the one listening on port {self._port}: {unseen}",
            "Let this user read /proc/PID of the processes that it starts. A Python with file "
            "capabilities hides them, and so do some mounts of /proc.",
        )


def report_unresponsive(folder: str) -> None:
    """Report that the server of ``folder`` did not answer in time."""
    with suppress(OSError):
        (Path(folder) / _REPORT).touch(mode=0o600)


class HangMonitor:
    """Probes a reported server, one probe at a time, without blocking its supervisor."""

    def __init__(
        self, folder: Path, probe: Callable[[], bool], failures_needed: int, probe_s: float
    ) -> None:
        """Watch ``folder`` for reports.

        Args:
            folder: The server's state folder.
            probe: Requests a real answer from the model; may take long.
            failures_needed: Failed probes in a row after which the server counts as hung.
            probe_s: Minimum time between a probe's start and its evaluation, in seconds: a server
                that refuses at once must get as long to make progress as one that does not answer.
        """
        self._file = folder / _REPORT
        self._probe = probe
        self._failures_needed = failures_needed
        self._probe_s = probe_s
        self._began_s = 0.0
        self._failures = 0
        self._before: Activity | None = None
        self._running: Future[bool] | None = None
        self._clear()

    @property
    def is_active(self) -> bool:
        """Whether the server was reported, or a probe is in progress."""
        return self._running is not None or self._file.exists()

    def is_hung(self, activity: Activity | None) -> bool:
        """Take a reading of the counters, start or evaluate a probe, and return the verdict."""
        if self._running is None:
            if self._file.exists():
                self._before = activity
                self._began_s = time.monotonic()
                with suppress(EmberdError):  # no thread is free: tried again at the next reading
                    self._running = background.run(self._probe, "health-probe")
        elif self._running.done() and time.monotonic() - self._began_s >= self._probe_s:
            before = self._before
            has_moved = (
                activity is not None
                and before is not None
                and (activity.requests, activity.tokens) != (before.requests, before.tokens)
            )
            if has_moved or (self._running.exception() is None and self._running.result()):
                self._failures = 0
                self._clear()
            else:
                self._failures += 1
            self._running = None
        return self._failures >= self._failures_needed

    def _clear(self) -> None:
        # Whatever has the name: a directory there must not end the supervisor.
        with suppress(OSError):
            paths.remove(self._file)

"""The supervisor of the gateway in the background: replaces it when it ends, or on request.

It opens the listening sockets and passes them to the gateway, so they stay open while one gateway
takes the place of another: connections wait in their queues and are not refused.

It is no subreaper: the supervisors of servers that the gateway starts become children of init, and
outlive it.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from emberd.errors import EmberdError
from emberd.gateway import addresses, background_gateway
from emberd.gateway.addresses import Listening
from emberd.gateway.background_gateway import GatewayRequest
from emberd.manager import cleanup, history, paths
from emberd.manager.gateway_facts import GatewayFacts
from emberd.manager.process_supervisor import ProcessSupervisor
from emberd.manager.process_tree import ServerProcess
from emberd.manager.state import Record, State
from emberd.manager.state_repair import FolderGone, report
from emberd.system import log_rules, os_errors, processes
from emberd.system.log_rules import READ_LOG, Diagnosis

# A gateway that serves for less than a minute is started again five times in a row, and not a sixth
# time. How long it takes until it serves does not count: with --preload it may be many minutes.
_QUICK_S: Final = 60.0
_MOST_QUICK_ENDS: Final = 5
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 10.0


class GatewayProcess(ServerProcess):
    """One gateway. Another one may run beside it, while it answers its last requests."""

    def __init__(
        self,
        request: GatewayRequest,
        mark: str,
        log: Path,
        scratch: str,
        own: Sequence[socket.socket],
        *,
        takes_over: bool,
    ) -> None:
        """Start it.

        Args:
            request: What it is to be.
            mark: See ``ServerProcess``.
            log: File for its output.
            scratch: See ``ServerProcess``; it is not used, because servers that the gateway starts
                would use it too, and outlive it.
            own: The listening sockets.
            takes_over: Whether another gateway answers on them until this one is ready.
        """
        self._has_said_ready = False
        self._ready, ready = os.pipe()
        os.set_blocking(self._ready, False)
        numbers = [each.fileno() for each in own]
        passed = [word for each in numbers for word in ("--descriptor", str(each))]
        passed += ["--takes-over"] if takes_over else []
        named = [each.getsockname() for each in own if each.family == socket.AF_UNIX]
        folder = request.working_folder
        try:
            super().__init__(
                [*request.command, *passed, "--ready-descriptor", str(ready)],
                request.environment,
                mark,
                log,
                scratch,
                inherited=[*numbers, ready],
                working_folder=folder if os.path.isdir(folder) else "/",
                uses_scratch=False,
                socket=named[0] if named else "",
            )
        except BaseException:
            os.close(self._ready)
            raise
        finally:
            os.close(ready)

    def is_ready(self) -> bool:
        """Return whether it has said that it answers."""
        if not self._has_said_ready:
            with suppress(BlockingIOError):
                self._has_said_ready = os.read(self._ready, 1) != b""
        return self._has_said_ready

    def reap(self) -> int | None:
        """Return the exit code once it has ended."""
        for pid in (self.pid, self._reaper.pid):
            with suppress(ChildProcessError):
                ended, status = os.waitpid(pid or self.pid, os.WNOHANG)
                if ended == self.pid:
                    self.exit_code = os.waitstatus_to_exitcode(status)
                self._reaper.was_reaped(ended)
        return self.exit_code

    def members(self) -> list[int]:
        """Return the pids of the gateway and what it has started; empty if it has ended."""
        if self.exit_code is not None:
            return []
        with suppress(OSError):
            return [self.pid, *processes.descendants(self.pid)]
        return []

    def close(self) -> None:
        """Stop the orphan reaper, and close what was opened."""
        super().close()
        os.close(self._ready)
        self.close_files()

    def _left(self) -> list[int]:
        return self.members()


@dataclass(frozen=True, slots=True)
class Successor:
    """A gateway that takes the place of the present one as soon as it is ready.

    Attributes:
        request: What it is to be.
        process: Its process.
        deadline: When it is given up, on the monotonic clock.
    """

    request: GatewayRequest
    process: GatewayProcess
    deadline: float


class GatewaySupervisor(ProcessSupervisor):
    """Runs the gateway, and replaces its process."""

    _server: GatewayProcess | None
    _request: GatewayRequest

    def __init__(self, folder: Path, own: Record, alive_fd: int) -> None:
        """Take over ``folder``; see ``ProcessSupervisor``."""
        super().__init__(folder, own, alive_fd)
        self._facts = own.gateway or GatewayFacts("", (), ())
        self._successor: Successor | None = None
        self._draining: dict[GatewayProcess, float] = {}  # with the time at which it is ended
        self._ready_at = 0.0
        self._listening = Listening([], lambda: None)

    def _supervise(self) -> None:
        self._publish(scratch=cleanup.scratch_path(self.record.start_id))
        try:
            request = background_gateway.read_request(self.folder)
            if request is None:
                self._fail(Diagnosis("The request to start the gateway is missing", "Try again."))
                return
            self._request = request
            opened = addresses.listening(request.addresses)
            self._listening = opened.__enter__()
        except EmberdError as error:
            self._fail(Diagnosis(str(error)))
            return
        except OSError as error:
            advice = os_errors.advice(error) or "Choose another --socket, or correct that folder."
            self._fail(Diagnosis(f"The gateway cannot listen: {error}", advice))
            return
        try:
            self._publish_facts(urls=tuple(map(addresses.shown, self._listening.sockets)))
            self._keep()
        finally:
            opened.__exit__(None, None, None)

    def _keep(self) -> None:
        """Run the gateway until a stop is requested; replace it whenever it ends."""
        quick_ends = 0
        was_ready = False
        while True:
            began, self._ready_at = time.monotonic(), math.inf  # it has served for no time yet
            problem = self._start()
            if problem is None and not self._stop_requested:
                was_ready = True
                self._ready_at = time.monotonic()
                ready_s = round(self._ready_at - began, 3)
                history.note(self.folder, history.READY, self.record, seconds=ready_s)
                self._publish_facts(state=State.READY, progress=self._replacing())
                problem = self._until_end()
            if problem is None or self._stop_requested:
                self._stop("stopped on request", by_user=True)
                return
            quick_ends = quick_ends + 1 if time.monotonic() - self._ready_at < _QUICK_S else 1
            if self._successor is None and (not was_ready or quick_ends > _MOST_QUICK_ENDS):
                self._fail(problem, was_ready=was_ready)
                return
            self._note(history.CRASHED, cause=problem.cause)
            report(f"{problem.cause}; it is started again")
            if self._server is not None:
                self._end(self._server)
                self._server = None
            self._publish_facts(
                state=State.STARTING,
                progress=f"restarting ({problem.cause})",  # the phase is without the cause
                pid=None,
                restarts=self._facts.restarts + 1,
            )
            pause_s = min(_FIRST_PAUSE_S * 2 ** (quick_ends - 1), _LONGEST_PAUSE_S)
            until = time.monotonic() + pause_s
            while (
                self._server is None
                and not self._stop_requested
                and (left := until - time.monotonic()) > 0
            ):
                self._attend(left)

    def _begin(self, request: GatewayRequest, *, takes_over: bool = False) -> GatewayProcess:
        """Start a gateway; see ``GatewayProcess``.

        Raises:
            OSError: It cannot be run.
        """
        return GatewayProcess(
            request,
            f"{self.folder}:{self.record.start_id}",
            self.folder / paths.LOG_NAME,
            self.record.scratch,
            self._listening.sockets,
            takes_over=takes_over,
        )

    def _start(self) -> Diagnosis | None:
        """Start the gateway, unless a successor has taken its place; return why it has ended.

        Returns:
            None if it is ready, or if a stop is requested.
        """
        if self._server is None:
            try:
                self._server = self._begin(self._request)
            except OSError as error:
                return _why_not_run(error)
            self._publish_facts(pid=self._server.pid)
        while not self._stop_requested and not self._server.is_ready():
            self._attend(self.record.timing.poll_s)
            if (code := self._server.reap()) is not None:
                return _diagnosis(code, self._server.log())
        return None

    def _until_end(self) -> Diagnosis | None:
        """Return why the gateway ended; None if a stop is requested."""
        while not self._stop_requested and self._server is not None:
            self._attend(self.record.timing.tick_s)
            if (code := self._server.reap()) is not None:
                return _diagnosis(code, self._server.log())
        return None

    def _attend(self, seconds: float) -> None:
        """Wait at most ``seconds``, and do what does not depend on the present gateway.

        Requests to replace it are read, and a successor that is ready takes its place.
        """
        poll_s = self.record.timing.poll_s
        self._wait(seconds if self._successor is None else min(seconds, poll_s))
        for old, deadline in [*self._draining.items()]:
            if old.reap() is not None or time.monotonic() > deadline:
                del self._draining[old]
                self._end(old)
        try:
            request = background_gateway.read_request(self.folder)
        except EmberdError as error:
            report(str(error))
        else:
            if request is not None:
                self._replace(request)
        if self._successor is not None:
            self._follow(self._successor)

    def _replace(self, request: GatewayRequest) -> None:
        """Start a gateway on the same sockets, which replaces the present one once it is ready."""
        if self._successor is not None:
            self._give_up(self._successor, "another replacement was requested")
        deadline = time.monotonic() + request.timeout_s
        try:
            self._successor = Successor(request, self._begin(request, takes_over=True), deadline)
        except OSError as error:
            problem = _why_not_run(error)
            self._refuse(request, f"{problem.cause}. {problem.advice}")
            return
        if self.record.state is State.READY:
            self._publish_if_possible(progress=self._replacing())

    def _follow(self, successor: Successor) -> None:
        """Let a successor take the place of the gateway if it is ready; give it up if it fails."""
        process, request = successor.process, successor.request
        if (code := process.reap()) is not None:
            self._give_up(successor, _diagnosis(code, process.log()).cause)
        elif process.is_ready():
            old, self._successor = self._server, None
            self._request, self._server = request, process
            self._ready_at = time.monotonic()
            self._publish_facts(
                request=request.id,
                arguments=request.arguments,
                models=request.models,
                pid=process.pid,
                progress="",
            )
            report(f"the gateway is now process {process.pid}")
            if old is not None:
                self._drain(old, request)
        elif time.monotonic() > successor.deadline:
            self._give_up(
                successor,
                f"it was not ready after {request.timeout_s:.0f} s. Give a longer --start-timeout",
            )

    def _give_up(self, successor: Successor, why: str) -> None:
        self._successor = None
        # It may have become ready at this moment, and have accepted connections.
        self._drain(successor.process, successor.request)
        self._refuse(successor.request, why)

    def _drain(self, process: GatewayProcess, request: GatewayRequest) -> None:
        """Let a gateway answer its requests in flight, one of which may wait for a server."""
        self._draining[process] = time.monotonic() + request.timeout_s + self.record.drain_s
        process.terminate()

    def _replacing(self) -> str:
        return "" if self._successor is None else "replacing the gateway"

    def _refuse(self, request: GatewayRequest, why: str) -> None:
        refusal = f"The gateway was not replaced: {why}"
        progress = "" if self.record.state is State.READY else None
        self._publish_facts(progress=progress, refused=request.id, refusal=refusal)

    def _publish_facts(
        self, *, state: State | None = None, progress: str | None = None, **changes: Any
    ) -> None:
        """Publish what the gateway is, and a new state."""
        self._facts = replace(self._facts, **changes)
        more = {"state": state, "progress": progress}
        given = {name: value for name, value in more.items() if value is not None}
        self._publish_if_possible(gateway=self._facts, **given)

    # -- end ----------------------------------------------------------------------------

    def _stop(self, reason: str, *, by_user: bool) -> None:
        self._stop_listening()
        if self._successor is not None:
            self._successor.process.terminate()
        super()._stop(reason, by_user=by_user)

    def _stop_listening(self) -> None:
        # Before the processes end and the record says so: no client connects to a socket that is
        # being closed, and the next gateway can use the path.
        self._listening.release()
        for listener in self._listening.sockets:
            listener.close()

    def _has_ended(self) -> bool:
        running = [each.reap() is None for each in self._running()]
        return not any(running)

    def _running(self) -> list[GatewayProcess]:
        successor = [] if self._successor is None else [self._successor.process]
        return [*([self._server] if self._server else []), *successor, *self._draining]

    def _end_server(self) -> None:
        self._stop_listening()
        for process in self._running():
            self._end(process)
        self._server, self._successor, self._draining = None, None, {}
        with suppress(FolderGone, EmberdError, OSError):
            self._files.check()  # another folder has the request of another supervisor
            background_gateway.discard_request(self.folder)
        cleanup.remove_files(self.record.scratch)

    def _end(self, process: GatewayProcess) -> None:
        if process.kill_all(self.record.timing.kill_s):
            process.close()
        else:
            report(f"process {process.pid} of the gateway cannot be killed")


def _why_not_run(error: OSError) -> Diagnosis:
    """Return why the process of a gateway cannot be started."""
    named = f" ({os.fsdecode(error.filename)})" if error.filename is not None else ""
    return Diagnosis(
        f"The gateway cannot be run: {error.strerror or error}{named}",
        os_errors.advice(error)
        or "If that Python was removed, use `emberd serve --background` of another installation.",
    )


def _diagnosis(code: int, log: str) -> Diagnosis:
    """Return why a gateway ended."""
    if code < 0:
        return Diagnosis(f"The gateway was ended by {log_rules.signal_name(code)}", READ_LOG)
    if code == 0:
        return Diagnosis(
            "The gateway was ended by a signal to its process", "Use `emberd stop gateway`."
        )
    return Diagnosis(f"The gateway ended with code {code}: {log_rules.last_line(log)}", READ_LOG)

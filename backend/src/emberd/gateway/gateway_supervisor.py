"""The supervisor of the gateway in the background: replaces it when it ends, or on request.

It opens the listening sockets and passes them to the gateway, so they stay open while one gateway
takes the place of another: connections wait in their queues and are not refused.

It is no subreaper: the supervisors of servers that the gateway starts become children of init, and
outlive it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
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
        self, request: GatewayRequest, mark: str, log: Path, scratch: str, own: Sequence[int]
    ) -> None:
        """Start it.

        Args:
            request: What it is to be.
            mark: See ``ServerProcess``.
            log: File for its output.
            scratch: See ``ServerProcess``; it is not used, because servers that the gateway starts
                would use it too, and outlive it.
            own: Descriptors of the listening sockets.
        """
        self._ready, ready = os.pipe()
        os.set_blocking(self._ready, False)
        passed = [word for each in own for word in ("--descriptor", str(each))]
        folder = request.working_folder
        try:
            super().__init__(
                [*request.command, *passed, "--ready-descriptor", str(ready)],
                request.environment,
                mark,
                log,
                scratch,
                inherited=[*own, ready],
                working_folder=folder if os.path.isdir(folder) else "/",
                uses_scratch=False,
            )
        except BaseException:
            os.close(self._ready)
            raise
        finally:
            os.close(ready)

    def is_ready(self) -> bool:
        """Return whether it has said that it answers; to be asked until then."""
        with suppress(BlockingIOError):
            return os.read(self._ready, 1) != b""
        return False

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
        self.close_log()

    def _left(self) -> list[int]:
        return self.members()


class GatewaySupervisor(ProcessSupervisor):
    """Runs the gateway, and replaces its process."""

    _server: GatewayProcess | None
    _request: GatewayRequest

    def __init__(self, folder: Path, own: Record, alive_fd: int) -> None:
        """Take over ``folder``; see ``ProcessSupervisor``."""
        super().__init__(folder, own, alive_fd)
        self._facts = own.gateway or GatewayFacts("", (), ())
        self._draining: list[GatewayProcess] = []
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
            began = time.monotonic()
            self._server = process = self._begin(self._request)
            self._publish_facts(pid=process.pid)
            problem = self._await_ready(process)
            ready_at = time.monotonic()
            if problem is None and not self._stop_requested:
                was_ready = True
                ready_s = round(ready_at - began, 3)
                history.note(self.folder, history.READY, self.record, seconds=ready_s)
                self._publish_facts(state=State.READY, progress="")
                problem = self._until_end()
            if problem is None or self._stop_requested:
                self._stop("stopped on request", by_user=True)
                return
            quick_ends = quick_ends + 1 if time.monotonic() - ready_at < _QUICK_S else 1
            if not was_ready or quick_ends > _MOST_QUICK_ENDS:
                self._fail(problem, was_ready=was_ready)
                return
            self._note(history.CRASHED, cause=problem.cause)
            report(f"{problem.cause}; it is started again")
            self._end(process)
            self._server = None
            self._publish_facts(
                state=State.STARTING,
                progress=f"restarting ({problem.cause})",  # the phase is without the cause
                pid=None,
                restarts=self._facts.restarts + 1,
            )
            pause_s = min(_FIRST_PAUSE_S * 2 ** (quick_ends - 1), _LONGEST_PAUSE_S)
            until = time.monotonic() + pause_s
            while not self._stop_requested and (left := until - time.monotonic()) > 0:
                self._wait(left)

    def _begin(self, request: GatewayRequest) -> GatewayProcess:
        return GatewayProcess(
            request,
            f"{self.folder}:{self.record.start_id}",
            self.folder / paths.LOG_NAME,
            self.record.scratch,
            [each.fileno() for each in self._listening.sockets],
        )

    def _await_ready(self, process: GatewayProcess) -> Diagnosis | None:
        """Wait until a gateway is ready or a stop is requested; return why it ended before that."""
        while not self._stop_requested and not process.is_ready():
            self._wait(self.record.timing.poll_s)
            if (code := process.reap()) is not None:
                return _diagnosis(code, process.log())
        return None

    def _until_end(self) -> Diagnosis | None:
        """Return why the gateway ended; None if a stop is requested."""
        while not self._stop_requested and self._server is not None:
            self._wait(self.record.timing.tick_s)
            for old in [each for each in self._draining if each.reap() is not None]:
                self._draining.remove(old)
                self._end(old)
            if (code := self._server.reap()) is not None:
                return _diagnosis(code, self._server.log())
            try:
                request = background_gateway.read_request(self.folder)
            except EmberdError as error:
                report(str(error))
            else:
                if request is not None:
                    self._replace(request, self._server)
        return None

    def _replace(self, request: GatewayRequest, old: GatewayProcess) -> None:
        """Start another gateway on the same sockets; if it is ready, the old one may finish."""
        self._publish_if_possible(progress="replacing the gateway")
        try:
            successor = self._begin(request)
        except OSError as error:
            self._refuse(request, f"It cannot be run: {error}. {os_errors.advice(error)}")
            return
        try:
            problem = self._await_ready(successor)
        except BaseException:
            self._end(successor)
            raise
        if problem is not None or self._stop_requested:
            self._end(successor)
            if problem is not None:
                self._refuse(request, problem.cause)
            return
        self._request, self._server = request, successor
        self._draining.append(old)
        self._publish_facts(
            request=request.id,
            arguments=request.arguments,
            models=request.models,
            pid=successor.pid,
            progress="",
        )
        report(f"the gateway is now process {successor.pid}")
        old.terminate()

    def _refuse(self, request: GatewayRequest, why: str) -> None:
        refusal = f"The gateway was not replaced: {why}"
        self._publish_facts(progress="", refused=request.id, refusal=refusal)

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
        return [*([self._server] if self._server else []), *self._draining]

    def _end_server(self) -> None:
        self._stop_listening()
        for process in self._running():
            self._end(process)
        self._server, self._draining = None, []
        with suppress(FolderGone, EmberdError, OSError):
            self._files.check()  # another folder has the request of another supervisor
            background_gateway.discard_request(self.folder)
        cleanup.remove_files(self.record.scratch)

    def _end(self, process: GatewayProcess) -> None:
        if process.kill_all(self.record.timing.kill_s):
            process.close()
        else:
            report(f"process {process.pid} of the gateway cannot be killed")


def _diagnosis(code: int, log: str) -> Diagnosis:
    """Return why a gateway ended."""
    if code < 0:
        return Diagnosis(f"The gateway was ended by {log_rules.signal_name(code)}", READ_LOG)
    if code == 0:
        return Diagnosis("The gateway was told to end", "Use `emberd stop gateway`.")
    return Diagnosis(f"The gateway ended with code {code}: {log_rules.last_line(log)}", READ_LOG)

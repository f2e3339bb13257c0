"""What the supervisors of servers and of the gateway share: one process, its record and its end.

A supervisor is the parent of its process and the only writer of its record. It holds the liveness
lock for its whole life, so if that lock is free, the author of the record has ended. It must leave
no process and no file behind.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType

from emberd import env
from emberd.engines.base import phase_of
from emberd.errors import EmberdError
from emberd.manager import cleanup, history, process_tree, state
from emberd.manager.state import Record, State
from emberd.manager.state_repair import FolderGone, StateFiles, report
from emberd.system import os_errors, processes
from emberd.system.log_rules import READ_LOG, Diagnosis


class ProcessSupervisor:
    """Runs one process, from its start to its end."""

    def __init__(self, folder: Path, own: Record, alive_fd: int) -> None:
        """Take over ``folder``.

        Args:
            folder: The state folder.
            own: The record that the starting process wrote.
            alive_fd: Descriptor that holds the liveness lock.
        """
        self.folder = folder
        self.record = replace(own, supervisor=processes.current())
        self._server: process_tree.ServerProcess | None = None
        self._stop_requested = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._files = StateFiles(folder, alive_fd)

    # -- signals ------------------------------------------------------------------------

    def install_signal_handlers(self) -> None:
        """Install the signal handlers; a signal ends any ``_wait`` at once."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._request_stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _request_stop(self, signum: int, frame: FrameType | None) -> None:
        self._stop_requested = True

    def _wait(self, seconds: float) -> None:
        """Wait until a signal comes, or for ``seconds``; then check that the folder exists.

        Raises:
            FolderGone: It does not, or it was replaced by another one.
        """
        if select.select([self._wake_read], [], [], seconds)[0]:
            os.read(self._wake_read, select.PIPE_BUF)
        if self._server is not None:
            with suppress(OSError):  # tried again at the next wait
                self._server.bound_log()
            self._server.update_memory()
        self._files.check()

    # -- the record ---------------------------------------------------------------------

    def _publish(self, **changes: object) -> None:
        """Replace fields of the record; a new state gets a new time, and ends a phase of the start.

        Raises:
            FolderGone: The current folder belongs to another supervisor.
            OSError: The disk is full, for example.
        """
        self._files.check()
        own, now = self.record, time.monotonic()
        new = replace(own, **changes)  # type: ignore[arg-type]
        is_new_state = new.state is not own.state
        if own.state is State.STARTING and (
            is_new_state or phase_of(new.progress) != phase_of(own.progress)
        ):
            new = replace(new, phases=own.completed_phases(now))
        self.record = replace(new, since_s=now) if is_new_state else new
        self._files.publish(self.record)

    def _publish_if_possible(self, **changes: object) -> None:
        """Publish; neither a full disk nor a lost folder keeps the supervisor from going on."""
        try:
            self._publish(**changes)
        except FolderGone:
            pass  # the next wait raises it
        except OSError as error:
            report(f"the record cannot be written: {error}")

    def _note(self, event: str, **facts: object) -> None:
        """Append an event to the history, with how long the present state has lasted."""
        own, now = self.record, time.monotonic()
        if own.state is State.STARTING:
            facts["phases"] = own.completed_phases(now)
            if event != history.READY:
                facts["phase"] = phase_of(own.progress)
        history.note(self.folder, event, own, seconds=round(now - own.since_s, 3), **facts)

    # -- life ---------------------------------------------------------------------------

    def run(self) -> None:
        """Start the process, run it until it ends, and leave nothing behind."""
        try:
            self._publish()
            self._files.watch(self.record.timing.tick_s)
            self._supervise()
        except FolderGone:
            # The record is not written: a folder that exists now belongs to another supervisor.
            self._note(history.FOLDER_GONE)
            self._end_server()
        except Exception as error:
            # The process must not outlive it.
            failure = Diagnosis(f"The supervisor failed: {error!r}", "Please report this as a bug.")
            if isinstance(error, EmberdError):
                failure = Diagnosis(str(error), "")
            elif isinstance(error, OSError):
                # It concerns the machine: a file that was removed, a limit, a full disk.
                advice = os_errors.advice(error) or READ_LOG
                failure = Diagnosis(f"The supervisor cannot go on: {error}", advice)
            self._fail(failure, was_ready=self.record.state is not State.STARTING)
            raise

    def _supervise(self) -> None:
        """Start the process and run it until it ends."""
        raise NotImplementedError

    # -- end ----------------------------------------------------------------------------

    def _stop(self, reason: str, *, by_user: bool) -> None:
        self._note(history.STOPPED if by_user else history.IDLE_STOP, cause=reason)
        # Published first: from here on no client is sent to this server.
        self._publish_if_possible(
            state=State.STOPPING, reason=reason, stopped_by_user=by_user, progress=""
        )
        if self._server is not None:
            self._server.terminate()
            deadline = time.monotonic() + self.record.drain_s
            while not self._has_ended() and (left := deadline - time.monotonic()) > 0:
                self._wait(min(left, self.record.timing.tick_s))
        self._end_server()
        self._publish_if_possible(state=State.ABSENT, endpoint=None)

    def _has_ended(self) -> bool:
        return self._server is None or self._server.reap() is not None

    def _fail(
        self, diagnosis: Diagnosis, *, was_ready: bool = False, is_hung: bool = False
    ) -> None:
        named = partial(env.named_for, self.record.spec.task)
        diagnosis = replace(diagnosis, cause=named(diagnosis.cause), advice=named(diagnosis.advice))
        event = history.CRASHED if was_ready else history.START_FAILED
        self._note(history.HUNG if is_hung else event, cause=diagnosis.cause)
        if was_ready:
            # No client may be sent to it while its processes are ended.
            self._publish_if_possible(state=State.STOPPING, reason=diagnosis.cause)
        self._end_server()
        self._publish_if_possible(
            state=State.FAILED, failure=diagnosis, was_ready=was_ready, endpoint=None, progress=""
        )

    def _end_server(self) -> None:
        server = self._server
        if server is None:
            cleanup.remove_files(self.record.scratch)
            return
        has_ended = server.kill_all(self.record.timing.kill_s)
        cleanup.remove_files(self.record.scratch, server.memory.known)
        # Last: if the supervisor is killed before this, the orphan reaper does its work.
        if has_ended:
            server.close()
            self._server = None
        else:
            report("some processes of the server cannot be killed")


def main(arguments: list[str], make: Callable[[Path, Record, int], ProcessSupervisor]) -> int:
    """Run the supervisor that ``spawn.run_supervisor`` has started.

    Args:
        arguments: Folder, start_id, descriptor of the liveness lock.
        make: Makes the supervisor of a folder, with its record and that descriptor.

    Returns:
        The exit code.
    """
    os.chdir("/")  # it must not keep the caller's folder in use
    folder, start_id, alive_fd = Path(arguments[0]), arguments[1], int(arguments[2])
    # The process must not inherit it: it would hold the liveness lock longer than its supervisor.
    os.set_inheritable(alive_fd, False)
    own = state.read_record(folder)
    if own is None or own.start_id != start_id:
        return 1
    supervisor = make(folder, own, alive_fd)
    supervisor.install_signal_handlers()
    supervisor.run()
    return 0

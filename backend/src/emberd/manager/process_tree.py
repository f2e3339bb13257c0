"""The server's process and its descendants: started, reaped, drained, and ended completely."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from emberd.manager import cleanup
from emberd.system import pdeathsig, processes

_PR_SET_CHILD_SUBREAPER: Final = 36
_REAPER: Final = str(Path(__file__).with_name("orphan_reaper.py"))
_REAP_POLL_S: Final = 0.02
_RESTARTS: Final = 5
_LOG_TAIL_BYTES: Final = 256 * 1024
_LOG_MOST_BYTES: Final = 8 * 1024 * 1024
# What remains of a log that became too large: its first bytes, with the start_id and the messages
# of the start, and its last ones, with the reason of a crash.
_LOG_HEAD_BYTES: Final = 512 * 1024
_LOG_KEPT_BYTES: Final = 2 * 1024 * 1024
_LOG_BLOCK_BYTES: Final = 64 * 1024
REMOVED: Final = "bytes of this log were removed here"
"""The end of the line that a log has in the place of its middle."""


def become_subreaper() -> None:
    """Make orphans among the descendants children of this process (Linux; elsewhere nothing)."""
    if sys.platform != "linux":
        return
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


class OrphanReaper:
    """A process that cleans up if this one is killed (Linux; elsewhere nothing).

    It ends all marked processes, and removes their shared memory and temporary files.
    """

    def __init__(
        self, marked: str, scratch: str, socket: str = "", memory: Sequence[str] = ()
    ) -> None:
        """Start it.

        Args:
            marked: Name, equals sign and value of the environment variable that is the mark.
            scratch: The folder for temporary files.
            socket: Path of the Unix socket of a gateway; empty if it has none.
            memory: See ``orphan_reaper.unseen_memory``.
        """
        self.pid: int | None = None
        self._command = [sys.executable, "-I", "-S", _REAPER, marked, scratch, socket, *memory]
        # A descriptor and not a file object: the garbage collector would close that, and the
        # orphan reaper then ends all processes with the mark.
        self._pipe: int | None = None
        self._restarts_left = _RESTARTS
        self._start()

    def was_reaped(self, pid: int) -> None:
        """Start another one if ``pid`` is the orphan reaper, which was killed."""
        if pid != self.pid or self._pipe is None:
            return
        os.close(self._pipe)
        self._pipe = None
        self._restarts_left -= 1
        # Limited, because one that ends at once would do so each time; a working server does not
        # depend on its orphan reaper.
        if self._restarts_left > 0:
            with suppress(OSError):
                self._start()

    def stop(self) -> None:
        """End it: nothing is left for it to end or to remove."""
        if self.pid is None or self._pipe is None:
            return
        # Before its pipe is closed, which would tell it that the supervisor was killed.
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._pipe)
        self._pipe = None

    def _start(self) -> None:
        if sys.platform != "linux":
            return
        reading, self._pipe = os.pipe()
        try:
            popen = subprocess.Popen(  # noqa: S603 - our own file
                self._command, stdin=reading, start_new_session=True
            )
        except BaseException:
            os.close(self._pipe)
            self._pipe = None
            raise
        finally:
            os.close(reading)
        # If it cannot be started, ``pid`` is that of an ended one, which ``stop`` must not signal.
        self.pid = popen.pid
        popen.returncode = 0  # reaped by ``ServerProcess.reap``


class ServerProcess:
    """A server and its descendants, in their own session and process group.

    Only the supervisor's main thread may create one: the kernel's parent-death signal follows the
    thread.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        mark: str,
        log: Path,
        scratch: str,
        *,
        inherited: Sequence[int] = (),
        working_folder: str | None = None,
        uses_scratch: bool = True,
        socket: str = "",
        memory: Sequence[str] = (),
    ) -> None:
        """Start ``command`` with its output appended to ``log``.

        Args:
            command: Program and arguments.
            environment: Its complete environment, to which the mark is added.
            mark: Folder, colon, start_id; identifies orphans as those of this start.
            log: File for its standard output and error.
            scratch: Folder for its temporary files.
            inherited: Descriptors that the command keeps, under the same numbers.
            working_folder: Where it runs; None for where this process does.
            uses_scratch: Whether ``TMPDIR`` names ``scratch``.
            socket: Path of a Unix socket that the supervisor made; empty if it made none.
            memory: See ``Plan``.

        Raises:
            OSError: It cannot be run.
        """
        self.exit_code: int | None = None
        # The other end closes with this process; see ``pdeathsig``.
        self._pipe = None if sys.platform == "linux" else os.pipe()
        pipe = self._pipe[0] if self._pipe else -1
        prefix = [sys.executable, "-I", "-S", pdeathsig.__file__, str(os.getpid()), str(pipe)]
        # The supervisor may continue to run, and try it again.
        with ExitStack() as undo:
            for each in self._pipe or ():
                undo.callback(os.close, each)
            self._reaper = OrphanReaper(f"{processes.MARK}={mark}", scratch, socket, memory)
            undo.callback(self._reaper.stop)
            self.memory = cleanup.SharedMemory(scratch, tuple(memory))
            # Read through the same descriptor: the file may be deleted or replaced in between.
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            self._log = os.open(log, flags, 0o600)
            undo.callback(os.close, self._log)
            # Every write through the other one goes to the end of the file.
            self._log_editor = os.open(log, flags & ~os.O_APPEND)
            undo.callback(os.close, self._log_editor)
            self._log_start = os.fstat(self._log).st_size
            popen = subprocess.Popen(  # noqa: S603 - the command is the engine's
                [*prefix, *command],
                # SPT_NOENV: processes that rename themselves keep a readable environment.
                env={
                    **environment,
                    **({"TMPDIR": scratch} if uses_scratch else {}),
                    processes.MARK: mark,
                    "SPT_NOENV": "1",
                },
                cwd=working_folder,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[*inherited, *([pipe] if self._pipe else [])],
            )
            self.pid = popen.pid
            undo.pop_all()
        # This process reaps every child itself (also orphans, which Popen does not know), so Popen
        # must neither wait nor warn.
        popen.returncode = 0

    @property
    def log_bytes(self) -> int:
        """How many bytes the server has written."""
        size = os.fstat(self._log).st_size
        if size < self._log_start:  # the file was truncated: its content is newer
            self._log_start = 0
        return size - self._log_start

    def log(self) -> str:
        """Return the end of what the server has written, also if the file was deleted."""
        count = min(self.log_bytes, _LOG_TAIL_BYTES)
        end = os.fstat(self._log).st_size
        return os.pread(self._log, count, max(0, end - count)).decode("utf-8", "replace")

    def bound_log(self) -> None:
        """Remove the middle of a log that became too large; the server does not take part.

        The file is edited in place, because the server holds an open descriptor on it. At any
        moment it contains both ends: the last bytes are copied to their new place first, also
        those that the server writes in the meantime, and then the file is cut after them. Only what
        is written between the last read and the cut is lost.
        """
        facts = os.fstat(self._log)
        is_same = os.path.samestat(facts, os.fstat(self._log_editor))
        if facts.st_size <= _LOG_MOST_BYTES or not is_same:
            return
        start = facts.st_size - _LOG_KEPT_BYTES
        head = os.pread(self._log, _LOG_HEAD_BYTES, 0)
        end = head.rfind(b"\n") + 1
        notice = f"\nemberd: {start - end} {REMOVED}\n"
        end += os.pwrite(self._log_editor, notice.encode(), end)
        while block := os.pread(self._log, _LOG_BLOCK_BYTES, start):
            start += len(block)
            end += os.pwrite(self._log_editor, block, end)
        os.ftruncate(self._log_editor, end)

    def reap(self) -> int | None:
        """Collect ended children; return the server's exit code once it has ended."""
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self.pid:
                    self.exit_code = os.waitstatus_to_exitcode(ended[1])
                self._reaper.was_reaped(ended[0])
        return self.exit_code

    def members(self) -> list[int]:
        """Return the pids of the server and its running descendants.

        Empty if they cannot be listed; without the server's own pid if that is not visible.
        """
        with suppress(OSError):
            return processes.descendants()
        return []

    def update_memory(self, *, at_once: bool = False) -> None:
        """Record the shared memory of the processes; see ``cleanup.SharedMemory.update``."""
        self.memory.update(self.members, at_once=at_once)

    def terminate(self) -> None:
        """Ask the server to drain and exit."""
        self.update_memory(at_once=True)
        if self.reap() is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill_all(self, timeout_s: float) -> bool:
        """Kill the group and every other descendant; return whether all are gone."""
        ended_at = time.time()
        self.update_memory(at_once=True)
        deadline = time.monotonic() + timeout_s
        while True:
            if self.exit_code is None:
                # Only while the leader is not reaped: afterwards its id may be of another process.
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)
            left = self._left()
            for pid in left:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            self.reap()
            if not left or time.monotonic() > deadline:
                self.memory.add_unseen(ended_at)
                return not left
            time.sleep(_REAP_POLL_S)

    def close(self) -> None:
        """Stop the orphan reaper, when the processes have ended and their files are removed."""
        self._reaper.stop()

    def close_files(self) -> None:
        """Close what was opened for a process that has ended; its supervisor continues to run."""
        for each in (self._log, self._log_editor, *(self._pipe or ())):
            os.close(each)

    def _left(self) -> list[int]:
        try:
            return [pid for pid in processes.descendants() if pid != self._reaper.pid]
        except OSError:
            # The server's own end is awaited even if its descendants cannot be listed.
            return [self.pid] if self.exit_code is None else []

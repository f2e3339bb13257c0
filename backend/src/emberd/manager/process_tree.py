"""The server's process as its supervisor holds it: started, reaped, drained, and nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from emberd.manager import cleanup
from emberd.system import pdeathsig, processes

_PR_SET_CHILD_SUBREAPER: Final = 36
_SHIM: Final = pdeathsig.__file__
_GUARD: Final = str(Path(__file__).with_name("orphan_reaper.py"))
_REAP_POLL_S: Final = 0.02
_RESTARTS: Final = 5
_NO_PIPE: Final = -1
_LOG_TAIL_BYTES: Final = 256 * 1024


def become_subreaper() -> None:
    """Make orphans among the descendants children of this process (Linux; elsewhere nothing)."""
    if sys.platform != "linux":
        return
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


class Guard:
    """A process that ends what bears a mark when this one is killed (Linux; elsewhere nothing)."""

    def __init__(self, marked: str, note: Path) -> None:
        """Start it.

        Args:
            marked: Name, equals sign, value of the variable that is the mark.
            note: File in which it notes shared memory.
        """
        self.pid: int | None = None
        self._words = [sys.executable, "-I", "-S", _GUARD, marked, str(note)]
        self._pipe = -1
        self._restarts_left = _RESTARTS
        self._start()

    def was_reaped(self, pid: int) -> None:
        """Start another if it is the guard that has ended: somebody killed it."""
        if pid != self.pid or self._pipe < 0:
            return
        os.close(self._pipe)
        self._pipe = -1
        self._restarts_left -= 1
        # One that ends at once would end again and again; and a server that is well is not to
        # be lost because its guard cannot be had.
        if self._restarts_left > 0:
            with suppress(OSError):
                self._start()

    def dismiss(self) -> None:
        """End it: there is nothing left for it to end."""
        if self.pid is None or self._pipe < 0:
            return
        os.close(self._pipe)
        self._pipe = -1
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def _start(self) -> None:
        if sys.platform != "linux":
            return
        read, write = os.pipe()
        try:
            popen = subprocess.Popen(  # noqa: S603 - our own file
                self._words, stdin=read, start_new_session=True
            )
        except OSError:
            os.close(write)  # or its pid, which is the last one's, would be ended in its place
            raise
        finally:
            os.close(read)
        self._pipe = write
        self.pid = popen.pid
        popen.returncode = 0  # reaped as the server is


class _Log:
    """What one server writes, read through the descriptor that it writes to.

    The name may be deleted or given to another file while the server runs.
    """

    def __init__(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        self.descriptor = os.open(path, flags, 0o600)
        self._start = os.fstat(self.descriptor).st_size

    def size(self) -> int:
        size = os.fstat(self.descriptor).st_size
        if size < self._start:  # truncated by somebody: what is there now came later
            self._start = 0
        return size - self._start

    def tail(self) -> str:
        count = min(self.size(), _LOG_TAIL_BYTES)
        end = os.fstat(self.descriptor).st_size
        return os.pread(self.descriptor, count, max(0, end - count)).decode("utf-8", "replace")


class ServerProcess:
    """A server and all that it starts, in a session and process group of its own.

    Only the supervisor's main thread may make one: the kernel's death signal follows the thread.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        mark: str,
        log: Path,
        inherited: Sequence[int] = (),
    ) -> None:
        """Start ``command`` with its output appended to ``log``.

        Args:
            command: Program and arguments.
            environment: The whole environment, to which the mark is added.
            mark: Folder, colon, start_id: by it leftovers are known as ours.
            log: File that takes the standard output and error.
            inherited: Descriptors that the command keeps, under the same numbers.
        """
        self.exit_code: int | None = None
        self._pipe: tuple[int, int] | None = None if sys.platform == "linux" else os.pipe()
        pipe = self._pipe[0] if self._pipe else _NO_PIPE
        prefix = [sys.executable, "-I", "-S", _SHIM, str(os.getpid()), str(pipe)]
        self._guard = Guard(f"{processes.MARK}={mark}", log.with_name(cleanup.NOTE))
        self._log = _Log(log)
        popen = subprocess.Popen(  # noqa: S603 - the command is the engine's
            [*prefix, *command],
            # SPT_NOENV: processes that rename themselves keep a readable environment.
            env={**environment, processes.MARK: mark, "SPT_NOENV": "1"},
            stdin=subprocess.DEVNULL,
            stdout=self._log.descriptor,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[*inherited, *([pipe] if self._pipe else [])],
        )
        self.pid = popen.pid
        # This process reaps every child itself (it also gets orphans that Popen knows nothing
        # of), so Popen must neither wait nor complain.
        popen.returncode = 0

    @property
    def log_bytes(self) -> int:
        """How much the server has written."""
        return self._log.size()

    def log(self) -> str:
        """Return the end of what the server has written, also if the file was deleted."""
        return self._log.tail()

    def reap(self) -> int | None:
        """Collect ended children; return the server's exit code once it has ended."""
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self.pid:
                    self.exit_code = os.waitstatus_to_exitcode(ended[1])
                self._guard.was_reaped(ended[0])
        return self.exit_code

    def members(self) -> list[int]:
        """Return the pids of the server and of all that it started and that still runs.

        Empty where they cannot be listed; without the server's own pid where it cannot be seen.
        """
        with suppress(psutil.Error, OSError):
            return processes.descendants()
        return []

    def terminate(self) -> None:
        """Ask the server to drain and go."""
        if self.reap() is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill_all(self, timeout_s: float) -> bool:
        """Kill the group and every other descendant; return whether all are gone."""
        deadline = time.monotonic() + timeout_s
        while True:
            if self.exit_code is None:
                # Only while the leader is not reaped: afterwards its id may be a stranger's.
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)
            left = self._left()
            for pid in left:
                with suppress(psutil.Error):
                    psutil.Process(pid).kill()
            self.reap()
            if not left:
                # Last: until here the supervisor may be killed, and leave its work to the guard.
                self._guard.dismiss()
            if not left or time.monotonic() > deadline:
                return not left
            time.sleep(_REAP_POLL_S)

    def _left(self) -> list[int]:
        try:
            return [pid for pid in processes.descendants() if pid != self._guard.pid]
        except (psutil.Error, OSError):
            # Its end is waited for, whatever else cannot be listed.
            return [self.pid] if self.exit_code is None else []

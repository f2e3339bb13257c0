"""Runs a program that must not outlive its supervisor.

Run as a file, not as a module, so that it starts in milliseconds and imports nothing of emberd::

    pdeathsig.py SUPERVISOR_PID PIPE_FD COMMAND...

Linux sends the signal itself when the supervisor ends (PR_SET_PDEATHSIG outlives ``exec``).
Elsewhere this process stays, reads a pipe whose other end only the supervisor has, and kills the
process group at end of file. The pipe can be used on Linux as well, for a program that starts
others, because the signal reaches only one process.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1
_EXIT_NO_SUPERVISOR = 1
_EXIT_CANNOT_RUN = 127
_EXIT_OF_SIGNAL = 128


def main(arguments: list[str]) -> int:
    """Run the command; it ends when the supervisor ends."""
    supervisor, pipe, command = int(arguments[0]), int(arguments[1]), arguments[2:]
    try:
        if pipe < 0:
            return _become(supervisor, command)
        return _watch_pipe(pipe, command)
    except OSError as error:
        sys.stderr.write(f"emberd: cannot run {command[0]}: {error.strerror}\n")
        return _EXIT_CANNOT_RUN


def _become(supervisor: int, command: list[str]) -> int:  # returns only on failure
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # The supervisor may have died before the call above; then no signal is sent.
    if os.getppid() != supervisor:
        return _EXIT_NO_SUPERVISOR
    os.execvp(command[0], command)  # noqa: S606 - a shell would be the process that gets the signal
    return _EXIT_CANNOT_RUN


def _watch_pipe(pipe: int, command: list[str]) -> int:
    os.set_inheritable(pipe, False)
    # The signal is only forwarded: the server drains, and this process ends after it.
    signal.signal(signal.SIGTERM, lambda signum, frame: os.kill(child, signum))
    child = os.posix_spawnp(command[0], command, os.environ)
    threading.Thread(target=_end_group_at_eof, args=(pipe,), daemon=True).start()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status if status >= 0 else _EXIT_OF_SIGNAL - status


def _end_group_at_eof(pipe: int) -> None:
    while os.read(pipe, 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

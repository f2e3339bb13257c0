"""Ends the processes of a server when its supervisor has died; sleeps until then.

Run as a file: ``orphan_reaper.py MARK INODES_FILE``. It reads its standard input, whose other end
only the supervisor has. At end of file it kills every process with the mark in its environment,
until none is left, and records the shared memory of each in the file, for the next start to remove.

The kernel's parent-death signal reaches only one process, the server itself. Its descendants may
request that signal too, but only once their interpreter has started: a scheduler of SGLang imports
for ten seconds before that, and would continue to run, and use a GPU, if its parent died meanwhile.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from contextlib import suppress

_POLL_S = 0.02
_END_S = 30.0
_PASSES = 3
_SHARED_MEMORY = b" /dev/shm/"
_INODE = 4


def main(mark: str, inodes_file: str) -> None:
    """Sleep until the supervisor has ended, then end all processes with ``mark``."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    while os.read(sys.stdin.fileno(), 1):
        pass
    wanted = os.fsencode(mark)
    deadline = time.monotonic() + _END_S
    passes = _PASSES
    # Several passes: a process may start another one, or be in the middle of an exec.
    while passes and time.monotonic() < deadline:
        passes = _PASSES if _kill(wanted, inodes_file) else passes - 1
        time.sleep(_POLL_S)


def _kill(wanted: bytes, inodes_file: str) -> int:
    """Kill the processes with the mark; return how many there were."""
    pids = [pid for pid in os.listdir("/proc") if pid.isdigit()]
    return sum(_kill_if_marked(pid, wanted, inodes_file) for pid in pids)


def _kill_if_marked(pid: str, wanted: bytes, inodes_file: str) -> bool:
    # The environment of a zombie cannot be read: it has ended. The descriptor is opened first: it
    # refers to the process that is read, and to no later one with the same pid.
    with suppress(OSError):
        process = _descriptor(int(pid))
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                marked = wanted in file.read().split(b"\0")
            if marked:
                _record_memory(pid, inodes_file)
                if process is None:
                    os.kill(int(pid), signal.SIGKILL)
                else:
                    signal.pidfd_send_signal(process, signal.SIGKILL)
            return marked
        finally:
            if process is not None:
                os.close(process)
    return False


def _descriptor(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            return None  # an old kernel, or a sandbox without this call
        raise


def _record_memory(pid: str, inodes_file: str) -> None:
    # As the supervisor does, whose last update may be older than the newest memory.
    with (
        suppress(OSError),
        open(f"/proc/{pid}/maps", "rb") as maps,
        open(inodes_file, "ab", opener=_open) as out,
    ):
        for line in maps:
            if _SHARED_MEMORY in line:
                out.write(line.split()[_INODE] + b"\n")


def _open(path: str, flags: int) -> int:
    # A named pipe in its place is not waited for, and a link not followed.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

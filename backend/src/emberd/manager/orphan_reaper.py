"""Ends what is left of a server whose supervisor was killed; run as a file, and asleep until then.

``orphan_reaper.py MARK NOTE``: reads its standard input, whose other end only the supervisor has.
At its end of file, every process with the mark in its environment is killed, until none is left;
the shared memory that each had is noted in the file, for the next start to remove.

The kernel's death signal reaches one process, the server itself. What that has started asks for a
signal of its own, but only when its interpreter has come so far: a scheduler of SGLang imports for
ten seconds before, and would live on, and take a GPU, if its parent died meanwhile.
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
_LOOKS = 3
_SHARED_MEMORY = b" /dev/shm/"
_INODE = 4


def main(mark: str, note: str) -> None:
    """Sleep until the supervisor is gone, then end what bears ``mark``."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    while os.read(sys.stdin.fileno(), 1):
        pass
    wanted = os.fsencode(mark)
    deadline = time.monotonic() + _END_S
    looks = _LOOKS
    # Looked several times: one may have started another, or be becoming another program, meanwhile.
    while looks and time.monotonic() < deadline:
        looks = _LOOKS if _kill(wanted, note) else looks - 1
        time.sleep(_POLL_S)


def _kill(wanted: bytes, note: str) -> int:
    """Kill the processes with the mark; return how many there were."""
    return sum(_kill_if_marked(pid, wanted, note) for pid in os.listdir("/proc") if pid.isdigit())


def _kill_if_marked(pid: str, wanted: bytes, note: str) -> bool:
    # Of a zombie nothing can be read: it is as good as gone. The descriptor is taken first: it
    # stands for the process that is read, and for no later one with its number.
    with suppress(OSError):
        process = _descriptor(int(pid))
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                marked = wanted in file.read().split(b"\0")
            if marked:
                _note_memory(pid, note)
                _end(int(pid), process)
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
            return None  # an old kernel, or a sandbox that knows no such call
        raise


def _end(pid: int, descriptor: int | None) -> None:
    if descriptor is None:
        os.kill(pid, signal.SIGKILL)
    else:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)


def _note_memory(pid: str, note: str) -> None:
    # As the supervisor does: what it last noted may be older than the newest of it.
    with suppress(OSError), open(f"/proc/{pid}/maps", "rb") as maps, open(note, "ab") as noted:
        for line in maps:
            if _SHARED_MEMORY in line:
                noted.write(line.split()[_INODE] + b"\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

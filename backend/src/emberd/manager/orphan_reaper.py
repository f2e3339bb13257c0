"""Ends the processes of a server whose supervisor was killed, and removes what they leave.

Run as a file: ``orphan_reaper.py MARK SCRATCH SOCKET MEMORY...``. It reads its standard input,
whose other end only the supervisor has. At end of file it kills every process with the mark in its
environment, until none is left, and then removes the Unix socket of a gateway, the shared memory
and the folder for temporary files. It needs no file of the state folder for that: the folder may be
gone. First it notes the kill in the history of the home.

The kernel's parent-death signal reaches only one process, the server itself. Its descendants may
request that signal too, but only once their interpreter has started: a scheduler of SGLang imports
for ten seconds before that, and would continue to run, and use a GPU, if its parent died then.

No module of emberd is imported here, because this process starts with every server and remains as
small as it can be.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import sys
import time
from contextlib import suppress

SHARED_MEMORY = "/dev/shm"  # noqa: S108 - where Linux keeps it
"""The folder of shared memory."""

_POLL_S = 0.02
_END_S = 30.0
_PASSES = 3
_MAPPING = b" /dev/shm/"
_INODE = 4
_UNSEEN_S = 2.0  # a supervisor looks several times a second while there is new memory


def main(mark: str, scratch: str, socket: str = "", *memory: str) -> None:
    """Sleep until the supervisor has ended, then end all processes with ``mark``.

    Args:
        mark: See ``note_kill``.
        scratch: The start's folder for temporary files.
        socket: Path of the Unix socket of a gateway; empty if it has none. A supervisor that was
            started by an older version, before this file was replaced, does not give it.
        memory: See ``unseen_memory``.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # What exists before the server is not the server's, although its processes may use it.
    others = existing_memory()
    while os.read(sys.stdin.fileno(), 1):
        pass
    killed_at = time.time()
    note_kill(mark)
    found: set[int] = set()
    wanted = os.fsencode(mark)
    deadline = time.monotonic() + _END_S
    passes = _PASSES
    # Several passes: a process may start another one, or be in the middle of an exec.
    while passes and time.monotonic() < deadline:
        passes = _PASSES if kill(wanted, found) else passes - 1
        time.sleep(_POLL_S)
    if socket:
        remove_socket(socket)  # only now has the gateway released its lock
    found |= unseen_memory(memory, killed_at)
    remove_memory(list_of_memory(scratch), found - others)
    remove_scratch(scratch)


def note_kill(mark: str) -> None:
    """Append to the history of the home that the supervisor was killed; see ``history``.

    Args:
        mark: Name, equals sign, state folder, colon and start_id.
    """
    folder, _, start_id = mark.partition("=")[2].rpartition(":")
    home = os.path.dirname(os.path.dirname(os.path.dirname(folder)))
    now = time.time()
    at = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1000):03}Z"
    facts = {"time": at, "event": "supervisor_killed", "start_id": start_id}
    facts |= {
        "server": os.path.basename(folder),
        "machine": os.path.basename(os.path.dirname(os.path.dirname(folder))),
    }
    # None of these values contains a quote or a backslash.
    line = ", ".join(f'"{name}": "{value}"' for name, value in facts.items())
    flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    with suppress(OSError):
        # Not created: the home may have been removed, or be no home at all.
        descriptor = os.open(os.path.join(home, "history.jsonl"), flags)
        try:
            facts_of_file = os.fstat(descriptor)
            if stat.S_ISREG(facts_of_file.st_mode) and facts_of_file.st_uid == os.geteuid():
                # The supervisor may have been killed in the middle of a line.
                end = facts_of_file.st_size - 1
                is_torn = end >= 0 and os.pread(descriptor, 1, end) != b"\n"
                os.write(descriptor, ("\n" * is_torn + f"{{{line}}}\n").encode())
        finally:
            os.close(descriptor)


def remove_socket(path: str) -> None:
    """Remove the Unix socket of a gateway whose supervisor has ended."""
    with suppress(OSError):
        # As in ``file_lock``: the next gateway, which may use the path already, holds the lock.
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            facts = os.lstat(path)
            if stat.S_ISSOCK(facts.st_mode) and facts.st_uid == os.geteuid():
                os.unlink(path)
        finally:
            os.close(descriptor)


def shared_memory_inodes(pid: int) -> set[int]:
    """Return the inodes of the shared memory of a process; none if it cannot be read."""
    # By inode, because a semaphore is created under one name and linked under another.
    with suppress(OSError), open(f"/proc/{pid}/maps", "rb") as maps:
        # A line of the kernel's table: addresses, permissions, offset, device, inode, path.
        return {int(line.split()[_INODE]) for line in maps if _MAPPING in line}
    return set()


def existing_memory() -> set[int]:
    """Return the inodes of all shared memory of the machine."""
    with suppress(OSError):
        return {entry.inode() for entry in os.scandir(SHARED_MEMORY)}
    return set()


def unseen_memory(prefixes: tuple[str, ...], killed_at: float) -> set[int]:
    """Return the inodes of unused shared memory that was made when a server was killed.

    A process can be killed before anybody looks at the memory that it has just made. Only memory
    whose name only its engine gives is meant, and only that of the last moment: another container
    may use the same folder, and its processes cannot be seen from here.

    Args:
        prefixes: What the names of the engine's shared memory begin with. A process that makes such
            memory must keep it open for as long as it needs it.
        killed_at: When the server, or its supervisor, was killed, in seconds since 1970.
    """
    found = set()
    with suppress(OSError):
        for entry in os.scandir(SHARED_MEMORY):
            if entry.name.startswith(prefixes):
                with suppress(OSError):  # it was removed
                    made_at = entry.stat(follow_symlinks=False).st_ctime
                    if abs(made_at - killed_at) < _UNSEEN_S:
                        found.add(entry.inode())
    return found - set().union(*map(_open_memory, _pids())) if found else found


def _open_memory(pid: int) -> set[int]:
    # A descriptor is closed, or a process ends, while they are read.
    opened = set()
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                if os.readlink(entry.path).startswith(f"{SHARED_MEMORY}/"):
                    opened.add(entry.stat().st_ino)
    return opened


def list_of_memory(scratch: str) -> str:
    """Return the file that lists the shared memory of a start, by inode.

    It is shared memory itself. An inode means nothing elsewhere: each container and each job may
    have its own folder of shared memory, all of which count from one.

    Args:
        scratch: The start's folder for temporary files, whose name is unique.
    """
    return os.path.join(SHARED_MEMORY, os.path.basename(scratch))


def remove_memory(list_file: str, inodes: set[int]) -> None:
    """Remove the shared memory of a start whose processes have ended, and the list of it.

    Args:
        list_file: See ``list_of_memory``.
        inodes: Of shared memory in addition to the listed one.
    """
    with suppress(OSError):
        descriptor = os.open(list_file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            if os.fstat(descriptor).st_uid == os.geteuid():
                inodes = inodes.union(int(line) for line in file.read().split() if line.isdigit())
    _remove(inodes)
    with suppress(OSError):
        os.unlink(list_file)


def _remove(inodes: set[int]) -> None:
    """Remove the shared memory of this user with these inodes, unless a process has it."""
    with suppress(OSError):
        there = {
            entry.inode(): entry.path
            for entry in os.scandir(SHARED_MEMORY)
            if entry.inode() in inodes and _is_own(entry)
        }
        if not there:
            return
        # Memory that a process has mapped is in use, no matter which process made it.
        used = set().union(*map(shared_memory_inodes, _pids()))
        for inode in there.keys() - used:
            with suppress(OSError):
                os.unlink(there[inode])


def remove_scratch(path: str) -> None:
    """Remove the folder for the temporary files of a start."""
    import shutil  # late: an orphan reaper seldom needs it

    shutil.rmtree(path, ignore_errors=True)


def _is_own(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):
        return entry.stat(follow_symlinks=False).st_uid == os.geteuid()
    return False


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def kill(wanted: bytes, inodes: set[int]) -> int:
    """Kill the processes with the mark; return how many there were.

    Args:
        wanted: Name, equals sign and value of the environment variable that is the mark.
        inodes: Set to which the shared memory of each process is added.
    """
    return sum(_kill_if_marked(pid, wanted, inodes) for pid in _pids())


def _kill_if_marked(pid: int, wanted: bytes, inodes: set[int]) -> bool:
    # The environment of a zombie cannot be read: it has ended. The descriptor is opened first: it
    # refers to the process that is read, and to no later one with the same pid.
    with suppress(OSError):
        process = _descriptor(pid)
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                marked = wanted in file.read().split(b"\0")
            if marked:
                # The supervisor's last look may be older than the newest memory.
                inodes |= shared_memory_inodes(pid)
                if process is None:
                    os.kill(pid, signal.SIGKILL)
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


if __name__ == "__main__":
    main(*sys.argv[1:])

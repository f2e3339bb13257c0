"""Identity of processes, which a pid does not prove because pids are reused.

A process is identified by its pid, its start time as counted by the kernel, and the boot in which
both were read. A zombie counts as ended, because its parent may never reap it.
"""

from __future__ import annotations

import errno
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from emberd.errors import StateFolderError

MARK: Final = "EMBERD_MARK"
"""Variable of every process that a supervisor or an installation starts: folder, colon, and what
started it (a supervisor's start_id, or ``install``)."""

# Positions in /proc/<pid>/stat after the name in parentheses, which may contain anything.
_STAT_STATE: Final = 0
_STAT_PARENT: Final = 1
_STAT_START: Final = 19
_END_POLL_S: Final = 0.02
_FIRST_PID_NAMESPACE: Final = str(0xEFFFFFFC)  # PROC_PID_INIT_INO in the kernel's proc_ns.h

UNREADABLE: Final = (FileNotFoundError, ProcessLookupError, PermissionError)
"""What is raised for a process that has ended, or that this user may not look at."""


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process: its pid, its start time in the kernel's units, and the boot in which it runs."""

    pid: int
    start: str
    boot: str

    def is_running(self) -> bool:
        """Return whether this process still runs; a zombie does not."""
        return identify(self.pid) == self


@cache
def boot_id() -> str:
    """Return the unique id of this boot of the machine.

    Raises:
        StateFolderError: The platform has no known one.
    """
    try:
        if sys.platform == "linux":
            return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        command = ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603 - constant
    except (OSError, subprocess.CalledProcessError) as error:
        raise StateFolderError(
            f"emberd starts servers only on Linux and macOS, and this system has no boot id "
            f"({error}). Give base_url= or EMBERD_BASE_URL of a running server."
        ) from error


def namespace() -> str:
    """Return a name for all processes that this one can tell apart by their pids."""
    return "-".join((boot_id().replace("-", "")[:12], *_inode("/proc/self/ns/pid")))


def network() -> str:
    """Return ``namespace`` and the network: ports of another network namespace are not reached.

    Not cached: a process, or one of its threads, may enter another network namespace.
    """
    return "-".join((namespace(), *_inode("/proc/thread-self/ns/net")))


def has_pids_of_host() -> bool:
    """Return whether pids are the same here as in the kernel's first pid namespace (Linux)."""
    return _inode("/proc/self/ns/pid") == [_FIRST_PID_NAMESPACE]


def _inode(of: str) -> list[str]:
    try:
        return [str(os.stat(of).st_ino)]
    except OSError:
        return []  # another system than Linux, or a kernel without that kind of namespace


def identify(pid: int) -> ProcessIdentity | None:
    """Return the identity of the running process ``pid``; None if there is none, or a zombie."""
    if sys.platform == "linux":
        values = _stat(pid)
        if values is None or values[_STAT_STATE] in "ZX":
            return None
        return ProcessIdentity(pid, values[_STAT_START], boot_id())
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return ProcessIdentity(pid, repr(process.create_time()), boot_id())
    except psutil.Error:
        return None


def current() -> ProcessIdentity:
    """Return the identity of this process."""
    me = identify(os.getpid())
    if me is None:
        raise StateFolderError("This process is not visible in /proc: is /proc mounted?")
    return me


def pids() -> list[int]:
    """Return the pids of all visible processes."""
    if sys.platform == "linux":
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    import psutil

    return psutil.pids()


def command_line(pid: int) -> list[str]:
    """Return the words of a process's command line; none for a zombie.

    Raises:
        OSError: It cannot be read; see ``UNREADABLE``.
    """
    if sys.platform != "linux":
        return list(_ask_psutil(pid, "cmdline"))
    words = _read(pid, "cmdline").removesuffix(b"\0").split(b"\0")
    # A process that has renamed itself may have put everything into one word.
    words = words if len(words) > 1 else words[0].split()
    return [os.fsdecode(word) for word in words]


def environment(pid: int) -> bytes:
    """Return the variables with which a process was started, each with a null byte behind it.

    Raises:
        OSError: They cannot be read; see ``UNREADABLE``.
    """
    if sys.platform == "linux":
        return _read(pid, "environ")
    variables = _ask_psutil(pid, "environ").items()
    return b"".join(os.fsencode(f"{name}={value}\0") for name, value in variables)


def variable(pid: int, name: str) -> str | None:
    """Return an environment variable with which a process was started; None if it has none.

    Raises:
        OSError: The variables cannot be read; see ``UNREADABLE``.
    """
    _, found, rest = (b"\0" + environment(pid)).partition(b"\0%b=" % os.fsencode(name))
    return os.fsdecode(rest.partition(b"\0")[0]) if found else None


def is_own(pid: int) -> bool:
    """Return whether a process runs for this user (its real user id).

    Raises:
        OSError: That cannot be read; see ``UNREADABLE``.
    """
    if sys.platform != "linux":
        return bool(_ask_psutil(pid, "uids").real == os.getuid())
    status = _read(pid, "status")
    return int(status[status.index(b"\nUid:") :].split(maxsplit=2)[1]) == os.getuid()


def descendants(of: int | None = None) -> list[int]:
    """Return the pids of what a process started and of what those started, zombies included.

    A process that may not be looked at, such as one of another user where ``/proc`` is mounted with
    ``hidepid``, is left out with what it started.

    Args:
        of: The pid of the process; None for this one.
    """
    root = os.getpid() if of is None else of
    if sys.platform != "linux":
        return [child.pid for child in _ask_psutil(root, "children", recursive=True)]
    # Not psutil's ``children``: it fails as soon as one process of the machine is unreadable.
    children: dict[int, list[tuple[int, int]]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (values := _stat(int(name))) is not None:
            started = int(values[_STAT_START])
            children.setdefault(int(values[_STAT_PARENT]), []).append((int(name), started))
    found, unvisited = [], [(root, 0)]
    while unvisited:
        parent, parent_started = unvisited.pop()
        # One that is older than its parent was read before the parent's pid was used again.
        own = [child for child in children.pop(parent, ()) if child[1] >= parent_started]
        found += [pid for pid, _ in own]
        unvisited += own
    return found


def new_start_id() -> str:
    """Return a random id for one start of one server."""
    return secrets.token_hex(8)


def send(identity: ProcessIdentity, signum: signal.Signals) -> bool:
    """Send a signal to exactly this process; return False if it has ended."""
    try:
        fd = os.pidfd_open(identity.pid) if hasattr(os, "pidfd_open") else None
    except ProcessLookupError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise
        fd = None  # an old kernel, or a sandbox without this call
    if fd is None:
        if is_running := identity.is_running():
            os.kill(identity.pid, signum)
        return is_running
    try:
        # Checked after opening: from now on the descriptor refers to this process and no later one.
        if not identity.is_running():
            return False
        signal.pidfd_send_signal(fd, signum)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)


def marked(folder: str, start_id: str | None = None) -> Iterator[ProcessIdentity]:
    """Yield this user's running processes that are marked with a state folder and a start id.

    None stands for all starts.
    """
    for found, mark_folder, mark_start_id in marks():
        if mark_folder == folder and start_id in (None, mark_start_id):
            yield found


def _has_same(folder: str, pid: int) -> bool:
    """Return whether ``folder`` is the same one for a process, unless that cannot be read.

    A job or a service may have its own file system at that path, such as a private ``/tmp``.
    """

    def identity(path: str) -> tuple[int, int] | None:
        try:
            facts = os.stat(path)
        except FileNotFoundError:
            return None  # it was removed, and then it is missing for both
        return facts.st_dev, facts.st_ino

    if sys.platform == "linux":
        with suppress(OSError):
            return identity(f"/proc/{pid}/root{folder}") == identity(folder)
    return True


Mark = tuple[ProcessIdentity, str, str]
"""A marked process, with the folder and the start id of its mark."""


def marks() -> Iterator[Mark]:
    """Yield the marked processes of this user, each with the folder and start id of its mark."""
    for pid in pids():
        try:
            if not variable(pid, MARK):
                continue  # before anything else is read: most processes have none
            # Identified before its environment is read again: if the pid is reused in between,
            # the identity is that of the ended one, and a signal to it reaches no process.
            found = identify(pid)
            mark_folder, _, mark_start_id = (variable(pid, MARK) or "").rpartition(":")
            if found is None or not mark_folder or not is_own(pid):
                continue
            if not _has_same(mark_folder, pid):
                continue
        except UNREADABLE:
            continue
        yield found, mark_folder, mark_start_id


def end_marked(folder: str, seconds: float, start_id: str | None = None) -> list[int]:
    """Kill what ``marked`` finds and wait until it is gone; return the pids that remain."""
    deadline = time.monotonic() + seconds
    while left := list(marked(folder, start_id)):
        for process in left:
            send(process, signal.SIGKILL)
        if time.monotonic() > deadline:
            break
        time.sleep(_END_POLL_S)
    return [process.pid for process in left]


def _stat(pid: int) -> list[str] | None:
    """Return the fields of ``/proc/<pid>/stat`` behind the name; None if it cannot be read."""
    try:
        stat = _read(pid, "stat")
    except UNREADABLE:
        return None  # with hidepid, processes of other users are invisible
    return stat.rpartition(b")")[2].decode().split()


def _read(pid: int, name: str) -> bytes:
    # Not through Path, which takes longer than the kernel: these files are read for all processes.
    with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:
        return file.read()


def _ask_psutil(pid: int, question: str, **more: Any) -> Any:
    """Return what a method of ``psutil.Process`` returns, where there is no ``/proc``."""
    import psutil

    try:
        return getattr(psutil.Process(pid), question)(**more)
    except psutil.Error as error:
        raise ProcessLookupError(str(error)) from error

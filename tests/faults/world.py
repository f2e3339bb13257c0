"""A home with its processes and files, and the invariants that hold after any fault.

A world has its own EMBERD_HOME, TMPDIR and session name. As root it also has its own small file
system for the home and the temporary files, in its own mount namespace. It can be filled, and it
disappears when the last process of the world ends. All worlds share the folder of shared memory.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import isolation
from emberd.manager import paths, state
from emberd.system import atomic_file, processes

SETTLE_S: Final = 20.0
"""How long a temporary state may last: a server without a supervisor, or two servers."""

_DISK: Final = "2m"
_CLONE_NEWNS: Final = 0x00020000
_MARK: Final = f"{processes.MARK}="
_POLL_S: Final = 0.05
_SHARED_MEMORY: Final = Path("/dev/shm")


@dataclass(frozen=True)
class Process:
    """A process of a world."""

    pid: int
    parent: int
    kind: str  # engine, supervisor, reaper, launcher or other
    command: str


class World:
    """A home, and the processes and files that belong to it.

    Attributes:
        home: ``EMBERD_HOME``.
        temporary: ``TMPDIR``.
        has_disk: Whether it has its own disk, which can be filled.
    """

    def __init__(self, root: Path, name: str, *, own_disk: bool = True) -> None:
        """Create a world in ``root``; this process and its future children belong to it."""
        self.root = root
        self.home, self.temporary = root / "home", root / "tmp"
        self.witness = root / "witness"
        self.has_disk = own_disk and os.geteuid() == 0 and _unshared()
        for folder in (self.home, self.temporary):
            folder.mkdir(mode=0o700)
        if self.has_disk:
            # The home and the temporary files share a disk, as they usually do.
            _mount(root / "home")
            (self.home / "e").mkdir(mode=0o700)
            (self.home / "tmp").mkdir(mode=0o700)
            self.home, self.temporary = self.home / "e", self.home / "tmp"
        os.environ["EMBERD_HOME"] = str(self.home)
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.temporary)
        isolation.begin(name)
        self._name = f"{isolation.VARIABLE}={name}".encode()
        self._ignored: set[str] = set()

    # -- state -----------------------------------------------------------------

    def is_ready(self) -> bool:
        """Return whether a record says that its server is ready."""
        for folder in self.folders():
            record = folder / state.RECORD_NAME
            with suppress(OSError):
                # It may be a named pipe, which would be waited for.
                if record.is_file() and '"state": "ready"' in record.read_text(errors="replace"):
                    return True
        return False

    def folders(self) -> list[Path]:
        """Return the state folders of all servers."""
        return paths.Home(self.home).all_server_folders()

    def processes(self) -> list[Process]:
        """Return the running processes of this world, except callers and this one."""
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid():
                with suppress(OSError, ValueError):
                    if process := self._process(int(name)):
                        found.append(process)
        return found

    def _process(self, pid: int) -> Process | None:
        if self._name not in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return None
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] in "ZX":
            return None
        return Process(pid, int(fields[1]), _kind(command), command.strip())

    def of(self, kind: str) -> list[int]:
        """Return the pids of the processes of a kind."""
        return [process.pid for process in self.processes() if process.kind == kind]

    # -- faults -------------------------------------------------------------------------

    def fill(self) -> None:
        """Fill the disk."""
        with suppress(OSError), (self.home.parent / "filler").open("ab", buffering=0) as file:
            for size in (65536, 4096):
                with suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def free(self) -> None:
        """Free the disk."""
        (self.home.parent / "filler").unlink(missing_ok=True)

    def kill(self, pids: Collection[int]) -> None:
        """Kill processes, and wait until they have ended: a busy machine takes some time for it.

        Until then, a caller may find the server, and a supervisor seems to run.
        """
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.ignore_unlisted_memory()
        self.settled(lambda: [str(each) for each in self.processes() if each.pid in pids])

    def ignore_leftovers(self) -> None:
        """Ignore the shared memory and the temporary files that exist now in later checks.

        Their owner is unknown if the only file that names it is lost.
        """
        self._ignored |= self.left_in_memory_and_temporary()

    def ignore_unlisted_memory(self) -> None:
        """Ignore the shared memory in later checks that no supervisor has listed yet.

        A server and its supervisor may be killed before the supervisor has seen new memory, for
        which it checks five times a second. Then its owner is unknown.
        """
        listed: set[str] = set()
        memory: dict[str, str] = {}
        for name in self._made_in_memory():
            with suppress(FileNotFoundError):  # removed since
                if name.startswith("emberd-"):
                    listed.update((_SHARED_MEMORY / name).read_text().split())
                else:
                    memory[name] = str((_SHARED_MEMORY / name).stat().st_ino)
        self._ignored |= {name for name, inode in memory.items() if inode not in listed}

    # -- invariants ---------------------------------------------------------------------

    def overlaps(self) -> list[str]:
        """Return the lines of engines that ran while another one of the same key did."""
        file = self.witness.with_name("witness.overlaps")
        return file.read_text().splitlines() if file.exists() else []

    def unsupervised(self) -> list[str]:
        """Return the engines whose parent is not a supervisor."""
        there = self.processes()
        supervisors = {process.pid for process in there if process.kind == "supervisor"}
        return [
            f"process {each.pid} has no supervisor: {each.command}"
            for each in there
            if each.kind == "engine" and each.parent not in supervisors
        ]

    def doubled(self) -> list[str]:
        """Return the engines, if there is more than one of them."""
        engines = [each for each in self.processes() if each.kind == "engine"]
        return [f"two servers: {each.command}" for each in engines] if len(engines) > 1 else []

    def left_behind(self) -> list[str]:
        """Return what is left after a stop: processes, files, shared memory, held locks."""
        left = [f"process {each.pid}: {each.command}" for each in self.processes()]
        left += [f"file or memory {name}" for name in sorted(self.left_in_memory_and_temporary())]
        for folder in self.folders():
            left += [f"unfinished {file}" for file in folder.glob(f".*{atomic_file.UNFINISHED}")]
            left += [f"locked {folder / name}" for name in ("lock", "alive") if _held(folder, name)]
        return left

    def left_in_memory_and_temporary(self) -> set[str]:
        """Return the temporary files, and the shared memory that servers of this world have made.

        The folder of the shared memory is that of the machine: emberd identifies a server's files
        by inode, and inodes are unique only within one folder.
        """
        return (self._made_in_memory() | set(os.listdir(self.temporary))) - self._ignored

    def _made_in_memory(self) -> set[str]:
        made = self.witness.read_text().split() if self.witness.exists() else []
        return set(os.listdir(_SHARED_MEMORY)).intersection(made)

    def settled(self, look: Callable[[], list[str]], seconds: float = SETTLE_S) -> list[str]:
        """Poll ``look`` until it finds nothing; return what it still finds after ``seconds``."""
        deadline = time.monotonic() + seconds
        while (found := look()) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return found

    # -- the end ------------------------------------------------------------------------

    def end(self) -> None:
        """End every process of this world."""
        for process in self.processes():
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    def keep(self, target: Path) -> None:
        """Copy the state folders before their file system disappears."""
        shutil.copytree(self.home, target, dirs_exist_ok=True, ignore=_no_fifos)


def _no_fifos(folder: str, names: list[str]) -> list[str]:
    entries = [Path(folder) / name for name in names]
    return [each.name for each in entries if not (each.is_file() or each.is_dir())]


def _kind(command: str) -> str:
    words = {
        "orphan_reaper.py": "reaper",
        "pdeathsig.py": "launcher",
        "emberd.verified_manager": "supervisor",
        "stub_server.py": "engine",
        "emberd.serving": "engine",
    }
    return next((kind for word, kind in words.items() if word in command), "other")


def _held(folder: Path, name: str) -> bool:
    try:
        descriptor = os.open(folder / name, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _unshared() -> bool:
    if sys.platform != "linux" or ctypes.CDLL(None).unshare(_CLONE_NEWNS) != 0:
        return False
    command = ["mount", "--make-rprivate", "/"]
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0


def _mount(folder: Path) -> None:
    options = f"size={_DISK},mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True)

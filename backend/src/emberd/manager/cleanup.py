"""What a server writes outside of its state folder, so that none of it stays behind.

Two places: temporary files, for which each start gets a folder of its own; and POSIX shared memory,
whose names the server chooses. Those are learnt from the kernel's maps of its processes while they
live, and noted by inode in the state folder: a server that is killed removes nothing by itself.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from emberd.errors import StateFolderError
from emberd.manager import paths, state
from emberd.manager.state import Timing
from emberd.system import processes

NOTE: Final = "shared-memory"
_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - where Linux keeps it; nothing is made there
_PREFIX: Final = "emberd-"
_LOOK_EVERY_S: Final = 1.0
_PRIVATE: Final = 0o600
_COLUMNS: Final = 6


def scratch(start_id: str) -> str:
    """Return where the temporary files of the start called ``start_id`` go; nothing is made.

    Not in the state folder: sockets lie in it, whose paths may have a hundred characters at most.
    """
    return os.path.join(tempfile.gettempdir(), f"{_PREFIX}{start_id}")


def make(scratch_folder: str) -> None:
    """Make the folder, for this user alone.

    Raises:
        PermissionError: Somebody else has made it.
    """
    os.makedirs(scratch_folder, mode=0o700, exist_ok=True)
    found = os.lstat(scratch_folder)
    if found.st_uid != os.geteuid() or not stat.S_ISDIR(found.st_mode):
        raise PermissionError(f"{scratch_folder} belongs to somebody else")


class SharedMemory:
    """The shared memory of one server, learnt while it runs."""

    def __init__(self, folder: Path) -> None:
        """Note what is seen in the state folder ``folder``."""
        self._file = folder / NOTE
        self._others: set[int] = set()
        self.known: set[int] = set()
        self._looked_at_s = -_LOOK_EVERY_S

    def begin(self) -> None:
        """Take what is there now for somebody else's: a server may only have attached to it."""
        self._others |= _there()

    def look(self, pids: Callable[[], Iterable[int]], *, at_once: bool = False) -> None:
        """Note the shared memory that the processes have now; at most once a second.

        Args:
            pids: Finds them, which costs some milliseconds.
            at_once: It is the last chance.
        """
        now = time.monotonic()
        if not at_once and now - self._looked_at_s < _LOOK_EVERY_S:
            return
        self._looked_at_s = now
        new = {inode for pid in pids() for inode in mapped(pid)} - self.known - self._others
        if not new:
            return
        self.known |= new
        # A full disk, or a folder that is gone, does not end a server: these are noted in memory.
        with suppress(OSError):
            note(self._file, new)


def note(file: Path, inodes: Iterable[int]) -> None:
    """Add inodes to a note, which is for this user alone."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, _PRIVATE)
    with os.fdopen(descriptor, "w") as opened:
        opened.write("".join(f"{inode}\n" for inode in sorted(inodes)))


def remove(folder: Path, scratch_folder: str, known: Iterable[int] = ()) -> None:
    """Remove what the server of ``folder`` left; its processes are gone.

    Args:
        folder: Its state folder.
        scratch_folder: What ``scratch`` made for it; empty for none.
        known: Inodes of shared memory besides those that are noted.
    """
    # By its name as well: a record is a file, and only what emberd made is to be removed.
    if scratch_folder and Path(scratch_folder).name.startswith(_PREFIX):
        shutil.rmtree(scratch_folder, ignore_errors=True)
    inodes = {*known, *_noted(folder / NOTE)}
    if inodes & _there():
        # Imported late: it takes longer than all that a process does that finds its server running.
        import psutil

        # What somebody still has is in use, whoever made it.
        inodes -= {inode for pid in psutil.pids() for inode in mapped(pid)}
        _unlink(inodes)
    with suppress(OSError):
        paths.remove(folder / NOTE)


def _noted(file: Path) -> set[int]:
    with suppress(StateFolderError):
        content = paths.read_file(file, truncate=True) or b""
        return {int(line) for line in content.split() if line.isdigit()}
    return set()


def _there() -> set[int]:
    with suppress(OSError):
        return {entry.inode() for entry in os.scandir(_SHARED_MEMORY)}
    return set()


def _unlink(inodes: set[int]) -> None:
    for entry in os.scandir(_SHARED_MEMORY):
        with suppress(OSError):
            if entry.inode() in inodes and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                os.unlink(entry.path)


def mapped(pid: int) -> Iterator[int]:
    """Yield the inodes of the shared memory that a process has; none where it cannot be seen."""
    # Columns of the kernel's table: 3 device, 4 inode, 5 path. By inode, for a semaphore is
    # made under one name and linked under another.
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            columns = line.split(maxsplit=_COLUMNS - 1)
            if len(columns) == _COLUMNS and columns[5].startswith(f"{_SHARED_MEMORY}/"):
                yield int(columns[4])


def end(folder: Path, timing: Timing) -> None:
    """End and remove it; the caller knows that the supervisor of ``folder`` is dead."""
    processes.end_marked(str(folder), timing.kill_s)
    own = state.read_last_record(folder)
    if own is None:
        # The record is lost; the log's first line names the last start too.
        start_id = paths.log_start_id(folder)
        remove(folder, scratch(start_id) if start_id else "")
    elif not own.found:
        remove(folder, own.scratch)

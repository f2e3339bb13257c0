"""Where the state of servers lies: private folders, checked at every opening.

::

    <home>/<machine>/servers/<key>/      the first server of an identity, and its start lock
    <home>/<machine>/servers/<key>-2/    a second one, for constraints that the first fails
    <home>/<pids>/claims/                locks on what only one starting server may take

``<machine>`` stands for this boot of this machine, for the container and for the network namespace:
a home may be shared, and a pid of another machine, or a port of another network namespace, means
nothing here. ``<pids>`` is the same without the network namespace: a GPU is there in all of them.
It is not the host's name, which a laptop changes with the network.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from emberd.errors import StateFolderError
from emberd.system import processes

_PRIVATE: Final = 0o700
_OTHERS: Final = 0o077
_FIRST_EXTRA: Final = 2
LOG_NAME: Final = "server.log"
_LOGS_KEPT: Final = 3
_LOG_START: Final = "emberd: start "
_FILE_MODE: Final = 0o600
_MOST_BYTES: Final = 4 * 1024 * 1024
_NO_FILE: Final = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    *(errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENODEV),
)


@dataclass(frozen=True, slots=True)
class Home:
    """The state folders of this user on this machine since it booted.

    Attributes:
        root: ``EMBERD_HOME`` or what stands for it.
    """

    root: Path

    @property
    def machine(self) -> Path:
        """The part of this boot, this container and this network namespace."""
        return self.root / processes.network()

    @property
    def servers(self) -> Path:
        """The folder of all servers' folders."""
        return self.machine / "servers"

    @property
    def claims(self) -> Path:
        """The folder of the locks on what only one starting server may take."""
        return self.root / processes.namespace() / "claims"

    def slot(self, key: str, number: int = 1) -> Path:
        """Return the folder of the ``number``-th server of an identity, from 1."""
        return self.servers / (key if number == 1 else f"{key}-{number}")

    def slots(self, key: str) -> list[Path]:
        """Return the folders that exist for an identity, the first one first."""
        return [folder for folder in self.all() if self.first_slot(folder) == self.slot(key)]

    def free_slot(self, key: str, taken: list[Path]) -> Path:
        """Return the first folder of an identity that is not among ``taken``."""
        number = 1
        while (folder := self.slot(key, number)) in taken:
            number += 1
        return folder

    def first_slot(self, folder: Path) -> Path:
        """Return the folder that has the start lock for ``folder``."""
        return self.slot(folder.name.partition("-")[0])

    def all(self) -> list[Path]:
        """Return the folders of all servers, in a lasting order."""
        try:
            with os.scandir(self.servers) as entries:
                return sorted(Path(e.path) for e in entries if e.is_dir(follow_symlinks=False))
        except (FileNotFoundError, NotADirectoryError):
            return []


def make_private(folder: Path) -> Path:
    """Make ``folder`` and what is missing above it, and check that it is ours alone.

    Raises:
        StateFolderError: It cannot be made, is somebody else's, or is open to others.
    """
    try:
        folder.parent.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
        folder.mkdir(mode=_PRIVATE, exist_ok=True)
    except OSError as error:
        raise StateFolderError(
            f"{folder} cannot be made ({error.strerror}). "
            f"Set EMBERD_HOME to a folder that you may write to."
        ) from error
    check_private(folder)
    return folder


def check_private(folder: Path) -> None:
    """Check that ``folder`` is a real folder, ours, and closed to others.

    Raises:
        StateFolderError: It is not; what lies in it could have been written by anybody.
        FileNotFoundError: There is no such folder.
    """
    try:
        facts = folder.lstat()
    except NotADirectoryError as error:
        raise StateFolderError(
            f"{folder} cannot be there: a part of its path is a file. "
            f"Set EMBERD_HOME to a folder that you may write to."
        ) from error
    if not stat.S_ISDIR(facts.st_mode):
        raise StateFolderError(f"{folder} is not a folder (a link?). Remove it, then try again.")
    if facts.st_uid != os.geteuid():
        raise StateFolderError(
            f"{folder} belongs to user {facts.st_uid}, not to {os.geteuid()}. "
            f"Set EMBERD_HOME to a folder of your own."
        )
    if facts.st_mode & _OTHERS:
        raise StateFolderError(
            f"{folder} is open to other users (mode {stat.S_IMODE(facts.st_mode):o}). "
            f"Run: chmod 700 '{folder}'"
        )


def rotate_log(folder: Path, start_id: str) -> Path:
    """Put the last start's log aside, open a new one with a line that holds ``start_id``."""
    log = folder / LOG_NAME
    for number in range(_LOGS_KEPT, 0, -1):
        older = log.with_suffix(f".log.{number}")
        newer = log.with_suffix(f".log.{number - 1}") if number > 1 else log
        if os.path.lexists(newer):
            remove(older)
            newer.replace(older)
    create(log, f"{_LOG_START}{start_id}\n".encode())
    return log


def log_start_id(folder: Path) -> str | None:
    """Return the start_id in the first line of the log in ``folder``; None if there is none."""
    first = (read_file(folder / LOG_NAME, truncate=True) or b"").partition(b"\n")[0]
    start_id = first.removeprefix(_LOG_START.encode()).decode("ascii", "replace")
    return start_id if first.startswith(_LOG_START.encode()) and start_id.isalnum() else None


def write_private(folder: Path, files: Mapping[str, str]) -> None:
    """Write files into ``folder`` that only this user may read; they may hold secrets."""
    for name, content in files.items():
        create(folder / name, content.encode())


def create(path: Path, content: bytes, *, sync: bool = False) -> None:
    """Write a new file of mode 0600, in place of whatever has its name.

    Args:
        path: The file, in a private folder.
        content: What it will hold.
        sync: Wait until the disk has it.
    """
    remove(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, _FILE_MODE), "wb") as file:
        file.write(content)
        file.flush()
        if sync:
            os.fsync(file.fileno())


def remove(path: Path) -> None:
    """Remove a file, a link, or a directory with its content; links are not followed.

    Raises:
        StateFolderError: ``path`` is not in a private folder: nothing there is ours to remove.
        OSError: It cannot be removed.
    """
    try:
        facts = path.lstat()
    except FileNotFoundError:
        return
    check_private(path.parent)
    if stat.S_ISDIR(facts.st_mode):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read_file(path: Path, *, truncate: bool = False) -> bytes | None:
    """Return the content of a state file; None if there is no regular file that can be read.

    A link is not followed, and a FIFO or a device does not block the caller.

    Args:
        path: The file.
        truncate: Return the first 4 MiB of a larger file; otherwise such a file is damaged, and
            None is returned.

    Raises:
        StateFolderError: The file may be sound, but reading it failed (disk, descriptor limit).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            facts = os.fstat(descriptor)
            is_whole = facts.st_size <= _MOST_BYTES
            if not stat.S_ISREG(facts.st_mode) or not (is_whole or truncate):
                return None
            with os.fdopen(descriptor, "rb", buffering=0, closefd=False) as file:
                return file.read(min(facts.st_size, _MOST_BYTES))
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _NO_FILE:
            return None
        raise StateFolderError(
            f"{path} cannot be read ({error.strerror}). Correct that, then try again."
        ) from error

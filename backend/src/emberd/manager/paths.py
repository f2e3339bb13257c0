"""Paths of the state folders and their files, with checks that only this user can write there.

::

    <home>/<machine>/servers/<key>/      the first server of an identity, and its start lock
    <home>/<machine>/servers/<key>-2/    a second one, for constraints that the first fails
    <home>/<machine>/gateway/background/ the gateway in the background, and its start lock
    <home>/<pids>/claims/                locks on GPUs, which only one starting server may take

``<machine>`` names this boot of this machine, the container (pid namespace) and the network
namespace: a home may be shared, and a pid of another machine or a port of another network namespace
is not valid here. ``<pids>`` is the same without the network namespace, because GPUs are common to
all of them. The host's name is not used: on a laptop it changes with the network.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

from emberd.errors import StateFolderError
from emberd.system import os_errors, ownership, processes

LOG_NAME: Final = "server.log"
_LOGS_KEPT: Final = 3
_LOG_START: Final = "emberd: start "
_MOST_BYTES: Final = 4 * 1024 * 1024
_SETTLED_S: Final = 1.0
_NO_FILE: Final = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL),
    *(errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENODEV),
)


@dataclass(frozen=True, slots=True)
class Home:
    """The state folders of this user on this machine since it booted.

    Attributes:
        root: ``EMBERD_HOME`` or its default.
    """

    root: Path

    @classmethod
    def of(cls, folder: Path) -> Home:
        """Return the home that contains the folder of a server."""
        return cls(folder.parents[2])

    @property
    def machine(self) -> Path:
        """The folder of this boot, this container and this network namespace."""
        return self.root / processes.network()

    @property
    def servers(self) -> Path:
        """The folder of all servers' folders."""
        return self.machine / "servers"

    @property
    def gateway(self) -> Path:
        """The state folder of the gateway in the background."""
        return self.machine / "gateway" / "background"

    @property
    def gpu_locks(self) -> Path:
        """The folder of the GPU locks."""
        return self.root / processes.namespace() / "claims"

    def server_folder(self, key: str, number: int = 1) -> Path:
        """Return the folder of the ``number``-th server of an identity, counted from 1."""
        return self.servers / (key if number == 1 else f"{key}-{number}")

    def server_folders(self, key: str) -> list[Path]:
        """Return the existing folders of an identity, the first one first."""
        first = self.server_folder(key)
        return [each for each in self.all_server_folders() if self.start_lock_folder(each) == first]

    def free_server_folder(self, key: str, taken: list[Path]) -> Path:
        """Return the first folder of an identity that is not among ``taken``."""
        folders = (self.server_folder(key, number) for number in count(1))
        return next(folder for folder in folders if folder not in taken)

    def start_lock_folder(self, folder: Path) -> Path:
        """Return the folder that contains the start lock for ``folder``."""
        return folder.with_name(folder.name.partition("-")[0])

    def server_folders_of_machine(self) -> list[Path]:
        """Return the folders of all servers, also of those in other network namespaces."""
        try:
            machines = sorted(self.root.glob(f"{processes.namespace()}*/{self.servers.name}"))
        except OSError:
            machines = [self.servers]
        return [folder for servers in machines for folder in _folders_in(servers)]

    def all_server_folders(self) -> list[Path]:
        """Return the folders of all servers, in a stable order."""
        return _folders_in(self.servers)


def _folders_in(servers: Path) -> list[Path]:
    try:
        with os.scandir(servers) as entries:
            # Whatever else has a name: ``start_lock_folder`` needs one with a key.
            return sorted(
                Path(entry.path)
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and entry.name.partition("-")[0]
            )
    except (FileNotFoundError, NotADirectoryError):
        return []


def rotate_log(folder: Path, start_id: str) -> Path:
    """Rename the last start's log and create a new one whose first line contains ``start_id``."""
    log = folder / LOG_NAME
    for number in range(_LOGS_KEPT, 0, -1):
        older = log.with_suffix(f".log.{number}")
        newer = log.with_suffix(f".log.{number - 1}") if number > 1 else log
        if os.path.lexists(newer):
            remove(older)
            newer.replace(older)
    create_file(log, f"{_LOG_START}{start_id}\n".encode())
    return log


def log_start_id(folder: Path) -> str | None:
    """Return the start_id in the first line of the log in ``folder``; None if there is none."""
    content = read_file(folder / LOG_NAME, truncate=True) or b""
    first = content.partition(b"\n")[0].decode("ascii", "replace")
    start_id = first.removeprefix(_LOG_START)
    return start_id if start_id != first and start_id.isalnum() else None


def create_file(path: Path, content: bytes) -> None:
    """Write a new file of mode 0600 in a private folder, in place of anything with its name.

    Only this user can read it, so it may contain secrets.
    """
    remove(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os_errors.named(path), open(os.open(path, flags, 0o600), "wb") as file:
        file.write(content)


def remove(path: Path) -> None:
    """Remove a file, a link, or a directory with its content; links are not followed.

    Raises:
        StateFolderError: ``path`` is not in a private folder, so it may not be emberd's.
        OSError: It cannot be removed.
    """
    try:
        facts = path.lstat()
    except FileNotFoundError:
        return
    ownership.check_private(path.parent)
    if stat.S_ISDIR(facts.st_mode):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read_file(path: Path, *, truncate: bool = False) -> bytes | None:
    """Return the content of a state file; None if there is no readable regular file.

    A link is not followed, a FIFO or a device does not block the caller, and a file that another
    user can have written counts as missing.

    Args:
        path: The file.
        truncate: Return the first 4 MiB of a larger file; otherwise such a file is damaged, and
            None is returned.

    Raises:
        StateFolderError: Reading failed although the file may be intact (disk, descriptor limit).
    """
    try:
        descriptor = ownership.open_file(path)
        try:
            facts = os.fstat(descriptor)
            is_whole = facts.st_size <= _MOST_BYTES
            if not ownership.is_own(facts) or not (is_whole or truncate):
                return None
            # Not os.fdopen: eventlet replaces it by one that closes the descriptor in any case.
            with open(descriptor, "rb", buffering=0, closefd=False) as file:
                return file.read(min(facts.st_size, _MOST_BYTES))
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _NO_FILE:
            return None
        raise StateFolderError(
            f"{path} cannot be read ({error.strerror}). "
            f"{os_errors.advice(error) or 'Fix the cause, then try again.'}"
        ) from error


class Changes:
    """Whether a file has changed since its content was read; asked for every few seconds.

    A change also changes the ctime, inode, size or mode. The clock of the ctime advances in steps
    of some milliseconds, so a file may change twice without a difference. Therefore content counts
    as read only if it was read a second after the last difference.
    """

    def __init__(self, path: Path) -> None:
        """Start with ``path`` unread."""
        self._path = path
        self._seen: tuple[int, ...] | None = None
        self._seen_since_s = 0.0
        self._accepted: tuple[int, ...] | None = None

    def is_unchanged(self) -> bool:
        """Return whether the file is as it was when its content was accepted."""
        try:
            found = self._path.lstat()
        except OSError:
            self._seen = self._accepted = None
            return False
        facts = (found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if facts != self._seen:
            self._seen, self._seen_since_s = facts, time.monotonic()
        return facts == self._accepted

    def accept(self) -> None:
        """Note that what ``is_unchanged`` has seen last was read afterwards, and is right."""
        if self._seen and time.monotonic() - self._seen_since_s >= _SETTLED_S:
            self._accepted = self._seen

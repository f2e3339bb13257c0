"""Removes what a server writes outside of its state folder: temporary files and shared memory.

Each start gets its own folder for temporary files. POSIX shared memory has names that the
server chooses: they are read from the kernel's maps of its processes while those run, and listed by
inode in a file beside them, because a killed server removes nothing itself. If its supervisor is
killed too, the orphan reaper removes all that; if the orphan reaper is killed too, the next start.
"""

from __future__ import annotations

import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Set
from contextlib import suppress
from pathlib import Path
from typing import Final

from emberd.errors import StateFolderError
from emberd.manager import history, orphan_reaper, paths, state
from emberd.manager.state import Timing
from emberd.system import ownership, processes

_PREFIX: Final = "emberd-"
# The path of a socket may have 107 bytes. The longest name that a server gives one is that of
# multiprocessing: /emberd-0123456789abcdef/pymp-01234567/listener-01234567.
_LONGEST_TEMPORARY_BYTES: Final = 107 - 24 - 14 - 18
_EVERY_S: Final = 0.2


def scratch_path(start_id: str) -> str:
    """Return the folder for the temporary files of a start; it is not created.

    It is not in the state folder, whose path may be longer than sockets allow.

    Raises:
        StateFolderError: It has no folder.
    """
    return os.path.join(temporary_folder(), f"{_PREFIX}{start_id}")


def temporary_folder() -> str:
    """Return the folder for servers' folders of temporary files.

    ``TMPDIR``, unless the paths of sockets there would be longer than the kernel allows.

    Raises:
        StateFolderError: That is so, and no other folder can be used.
    """
    given, *others = _temporary_folders()
    if len(os.fsencode(given)) <= _LONGEST_TEMPORARY_BYTES:
        return given
    for folder in others:
        with suppress(OSError):
            facts = os.stat(folder)
            # No other user may rename or replace what is made there.
            is_closed = not facts.st_mode & 0o022 or facts.st_mode & stat.S_ISVTX
            is_trusted = facts.st_uid in (0, os.geteuid()) and is_closed
            is_short = len(os.fsencode(folder)) <= _LONGEST_TEMPORARY_BYTES
            if is_short and is_trusted and os.access(folder, os.W_OK | os.X_OK):
                return folder
    raise StateFolderError(
        f"The path of the folder for temporary files, {given}, has {len(os.fsencode(given))} "
        f"bytes. A server makes sockets in it, whose paths are limited by the kernel, so it may "
        f"have {_LONGEST_TEMPORARY_BYTES}. Set TMPDIR to a folder with a shorter path."
    )


def _temporary_folders() -> list[str]:
    """Return the folders in which the temporary files of servers may be, the preferred first."""
    try:
        given = tempfile.gettempdir()
    except OSError as error:
        raise StateFolderError(
            f"There is no folder for temporary files ({error.strerror}). Set TMPDIR to a folder "
            f"that you may write to."
        ) from error
    others = ("/tmp", "/var/tmp", os.environ.get("XDG_RUNTIME_DIR", ""))  # noqa: S108 - checked
    return [given, *(each for each in others if os.path.isabs(each))]


def make_scratch(path: str) -> None:
    """Create the folder for the temporary files of a start; it may exist from an earlier try.

    Raises:
        StateFolderError: It is a link, belongs to another user, or is open to others: in a folder
            that all may write to, anybody could have made it.
        OSError: It cannot be created.
    """
    folder = Path(path)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    ownership.check_private(folder, "TMPDIR")


class SharedMemory:
    """The shared memory of one server, listed while the server runs."""

    def __init__(self, scratch: str, prefixes: tuple[str, ...] = ()) -> None:
        """Treat all that exists now as not the server's: it may only attach to it.

        Args:
            scratch: The server's folder for temporary files.
            prefixes: See ``orphan_reaper.unseen_memory``.
        """
        self._prefixes = prefixes
        self._file = orphan_reaper.list_of_memory(scratch)
        self._others = orphan_reaper.existing_memory()
        self._listed: set[int] = set()
        self.known: set[int] = set()
        self._updated_at_s = -_EVERY_S

    def update(self, pids: Callable[[], Iterable[int]], *, at_once: bool = False) -> None:
        """List the shared memory that the processes have now.

        Only while there is memory of unknown owners, at most five times a second: if the server is
        killed together with this process, what is not listed remains.

        Args:
            pids: Returns the processes; a call takes some milliseconds.
            at_once: Update now in any case, because the processes are about to end.
        """
        now = time.monotonic()
        if not at_once:
            unknown = orphan_reaper.existing_memory() - self._others - self.known
            if not unknown or now - self._updated_at_s < _EVERY_S:
                return
        self._updated_at_s = now
        for pid in pids():
            self.known |= orphan_reaper.shared_memory_inodes(pid) - self._others
        if new := self.known - self._listed:
            # If there is no space, it is tried again at the next update.
            with suppress(OSError):
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
                with open(ownership.open_file(self._file, flags), "w") as file:
                    file.write("".join(f"{inode}\n" for inode in sorted(new)))
                self._listed |= new

    def add_unseen(self, ended_at: float) -> None:
        """Count what the processes made just before they ended, without listing it.

        Args:
            ended_at: When this process noticed the end, in seconds since 1970.
        """
        self.known |= orphan_reaper.unseen_memory(self._prefixes, ended_at) - self._others


def remove_files(scratch: str, known: Set[int] = frozenset()) -> None:
    """Remove the temporary files and the shared memory of a server whose processes have ended.

    Args:
        scratch: Its folder for temporary files; empty if it has none.
        known: Inodes of shared memory in addition to the listed one.
    """
    # The name is checked, as the record is a file that may be damaged: only what emberd made may be
    # removed.
    if os.path.basename(scratch).startswith(_PREFIX):
        orphan_reaper.remove_memory(orphan_reaper.list_of_memory(scratch), set(known))
        orphan_reaper.remove_scratch(scratch)


def clean_up(folder: Path, timing: Timing, *, may_run: bool = True) -> None:
    """End the processes and remove the files of a dead supervisor's server.

    The caller knows that no supervisor of ``folder`` runs.

    Args:
        folder: Its state folder.
        timing: How long killed processes may take to end.
        may_run: Whether some of its processes may run; to find them, all processes are read.
    """
    if may_run:
        processes.end_marked(str(folder), timing.kill_s)
    own = state.read_last_record(folder)
    if own is None:
        # The record is lost; the first line of the log contains the last start_id too.
        start_id = paths.log_start_id(folder)
        for place in _temporary_folders() if start_id else ():
            remove_files(os.path.join(place, f"{_PREFIX}{start_id}"))
    elif not own.found:
        history.note_killed(folder, own)
        remove_files(own.scratch)
        # After an orderly end, which removes the socket, the path may be that of another program.
        was_killed = own.state in state.RUNNING
        for url in own.gateway.urls if own.gateway is not None and was_killed else ():
            scheme, _, path = url.partition(":")
            if scheme == "unix":
                orphan_reaper.remove_socket(path)

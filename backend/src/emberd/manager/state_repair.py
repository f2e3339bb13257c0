"""Repairs the state files of a running supervisor when they are lost or damaged.

Other processes may delete, truncate or replace a file in the state folder; readers would then see
no server although one runs. A thread checks the files every tick, whatever the supervisor itself is
waiting for, and rewrites from memory what differs from what was last published.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from emberd.manager import idle, locks, paths, state
from emberd.manager.state import Record
from emberd.system import background

_MODE: Final = 0o600


class FolderGone(Exception):  # noqa: N818 - not an error: another process removed the folder
    """The state folder was removed or replaced, so no client can use the server any more."""


class StateFiles:
    """The record and the requested idle timeout of one server, as its supervisor keeps them."""

    def __init__(self, folder: Path, alive_fd: int) -> None:
        """Start with nothing published.

        Args:
            folder: The server's state folder.
            alive_fd: Descriptor that holds the liveness lock.
        """
        self.idle_timeout = idle.RequestedTimeout(folder)
        self._folder = folder
        self._file = folder / state.RECORD_NAME
        self._changes = paths.Changes(self._file)
        self._alive_fd = alive_fd
        self._lock = threading.Lock()
        self._own: Record | None = None
        self._has_reported = False

    def check(self) -> None:
        """Check that the folder is still the one in which the liveness lock is held.

        Raises:
            FolderGone: It does not exist, or it is another one.
        """
        if not locks.is_same_file(self._alive_fd, self._folder):
            raise FolderGone

    def publish(self, own: Record) -> None:
        """Replace the record; a failed write is retried at each tick of ``watch``.

        Raises:
            FolderGone: The current folder belongs to another supervisor.
            OSError: The disk is full, for example.
        """
        with self._lock:
            self._own = own
            # If the write fails, the file is unchanged, but is no longer what it should be.
            self._changes = paths.Changes(self._file)
            self._write(own)

    def _write(self, own: Record) -> None:
        # Checked twice: before anything is made in the folder, and at the last moment.
        self.check()
        state.write_record(self._folder, own, self.check)

    def watch(self, every_s: float) -> None:
        """Restore lost files in a thread, every ``every_s`` seconds, until the folder is gone."""

        def work() -> None:
            with suppress(FolderGone):
                while True:
                    self.check()
                    self.restore()
                    time.sleep(every_s)

        background.run(work, "state-files")

    def restore(self) -> None:
        """Rewrite what is missing, damaged or changed by others; report a failure once."""
        failed: OSError | None = None
        for step in (self._restore_permissions, self._restore_record, self.idle_timeout.restore):
            try:
                step()
            except OSError as error:
                failed = failed or error
        if failed is not None and not self._has_reported:
            report(f"cannot rewrite a lost or damaged state file in {self._folder}: {failed}")
        self._has_reported = failed is not None

    def _restore_permissions(self) -> None:
        # Readers must be able to open the file to see that its lock is held.
        if stat.S_IMODE(os.fstat(self._alive_fd).st_mode) != _MODE:
            os.fchmod(self._alive_fd, _MODE)

    def _restore_record(self) -> None:
        with self._lock:
            if self._own is None or self._changes.is_unchanged():
                return
            is_intact = paths.read_file(self._file) == state.serialize_record(self._own)
            if not is_intact or stat.S_IMODE(self._file.lstat().st_mode) != _MODE:
                self._write(self._own)
            else:
                self._changes.accept()


def report(text: str) -> None:
    """Write a line to the server's log; a full disk does not stop the supervisor."""
    with suppress(OSError):
        sys.stderr.write(f"emberd: {text}\n")
        sys.stderr.flush()

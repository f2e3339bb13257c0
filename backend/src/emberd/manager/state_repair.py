"""The state files of a living supervisor: rewritten from memory when they are lost or damaged.

Others may delete, truncate or replace a file in the state folder. Readers would then see no server
although one runs. A thread looks at the files every tick, whatever the supervisor itself is waiting
for, and writes again what differs from what was last published.
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

from emberd.manager import idle, liveness, paths, state
from emberd.manager.state import Record

_MODE: Final = 0o600

_Facts = tuple[int, ...]


class StateFiles:
    """The record and the idle times of one server, as its supervisor keeps them."""

    def __init__(self, folder: Path, alive_fd: int) -> None:
        """Begin with nothing published.

        Args:
            folder: The server's state folder.
            alive_fd: Descriptor that holds the liveness lock; without it nothing is written.
        """
        self.asked = idle.Asked(folder)
        self._folder = folder
        self._alive_fd = alive_fd
        self._lock = threading.Lock()
        self._content: bytes | None = None
        self._facts: _Facts | None = None
        self._told = False

    def publish(self, own: Record) -> None:
        """Replace the record; a write that fails is tried again at each tick of ``watch``.

        Raises:
            OSError: The disk is full, or the like.
        """
        with self._lock:
            self._content = state.serialize_record(own)
            self._write()

    def watch(self, every_s: float) -> None:
        """Restore what is lost, every ``every_s`` seconds, until the folder is gone."""
        threading.Thread(
            target=self._watch, args=(every_s,), daemon=True, name="emberd-state-files"
        ).start()

    def restore(self) -> None:
        """Write again what is missing, damaged or not our own; report a failure once."""
        failed: OSError | None = None
        for step in (self._restore_permissions, self._restore_record, self.asked.restore):
            try:
                step()
            except OSError as error:
                failed = failed or error
        if failed is not None and not self._told:
            tell(f"a lost or damaged state file in {self._folder} cannot be rewritten: {failed}")
        self._told = failed is not None

    def _watch(self, every_s: float) -> None:
        while liveness.is_same_file(self._alive_fd, self._folder):
            self.restore()
            time.sleep(every_s)

    def _restore_permissions(self) -> None:
        # Readers must be able to open the file to see that its lock is held.
        if stat.S_IMODE(os.fstat(self._alive_fd).st_mode) != _MODE:
            os.fchmod(self._alive_fd, _MODE)

    def _restore_record(self) -> None:
        with self._lock:
            if self._content is None:
                return
            # Almost always this one call is all: the content is read only if the file changed.
            facts = _facts(self._folder / state.RECORD_NAME)
            if facts is not None and facts == self._facts:
                return
            if self._is_ours():
                self._facts = facts
            else:
                self._write()

    def _is_ours(self) -> bool:
        file = self._folder / state.RECORD_NAME
        if paths.read_file(file) != self._content:
            return False
        return stat.S_IMODE(file.lstat().st_mode) == _MODE

    def _write(self) -> None:
        # The next tick compares the content once, which also covers a change right after this.
        self._facts = None
        if self._content is not None:
            state.write_serialized(self._folder, self._content)


def tell(text: str) -> None:
    """Write a line to the server's log; a full disk does not keep a supervisor from its work."""
    with suppress(OSError):
        sys.stderr.write(f"emberd: {text}\n")
        sys.stderr.flush()


def _facts(file: Path) -> _Facts | None:
    try:
        facts = os.lstat(file)
    except OSError:
        return None
    # The change time too: content and permissions can change while the modification time stays.
    return (
        *(facts.st_dev, facts.st_ino, facts.st_mode, facts.st_size),
        *(facts.st_mtime_ns, facts.st_ctime_ns),
    )

"""What a server leaves on a machine besides processes: shared memory and temporary files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil

import leftovers
import waiting
from emberd.manager import orphan_reaper

_SHARED_MEMORY: Final = Path("/dev/shm")
_GONE_S: Final = 60.0  # what another worker's killed server left goes with its next start
_LOOK_S: Final = 0.5
_PREFIX: Final = "emberd-"


@contextmanager
def all_gone(home: Path) -> Iterator[None]:
    """Fail if, at the end, a process of ``home`` or a file outside of it is left."""
    before = files()
    yield
    processes = leftovers.end_all([str(home)])
    assert not processes, "processes left behind:\n" + "\n".join(processes)
    with suppress(AssertionError):
        waiting.until(lambda: not _left(before), _GONE_S, poll_s=_LOOK_S)
    remaining = _left(before)
    assert not remaining, "files left behind:\n" + "\n".join(sorted(remaining))


def _left(before: set[str]) -> set[str]:
    # What a living process has mapped is another server's, of another test or another program.
    inodes = {inode for pid in psutil.pids() for inode in orphan_reaper.shared_memory_inodes(pid)}
    return {
        path
        for path in files() - before
        if os.path.exists(path) and os.stat(path).st_ino not in inodes and not _lives(path)
    }


def _lives(path: str) -> bool:
    # The folder of a start is its server's for as long as a process bears the start's name.
    start_id = Path(path).name.removeprefix(_PREFIX)
    return _PREFIX in path and bool(leftovers.find([f":{start_id}"]))


def files() -> set[str]:
    """Return the shared memory, and the folders for temporary files that emberd made."""
    folders = Path(tempfile.gettempdir()).glob(f"{_PREFIX}*")
    # The tests of the manager, whose servers are stubs, may run beside this one.
    shared = (path for path in _SHARED_MEMORY.iterdir() if not path.name.startswith("stub_"))
    return {str(path) for path in (*shared, *folders)}

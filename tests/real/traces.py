"""What a server leaves on a machine besides processes: shared memory and temporary files."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil

import leftovers
import waiting
from emberd.manager import history, orphan_reaper

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
    started = _started(home)
    with suppress(AssertionError):
        waiting.until(lambda: not _left(before, started), _GONE_S, poll_s=_LOOK_S)
    remaining = _left(before, started)
    assert not remaining, "files left behind:\n" + "\n".join(sorted(remaining))


def _started(home: Path) -> set[str]:
    # A test may give each engine a separate home below this one.
    written = home.rglob(f"{history.NAME}*")
    lines = [line for file in written for line in file.read_text().splitlines()]
    return {start_id for line in lines if (start_id := json.loads(line).get("start_id"))}


def _left(before: set[str], started: set[str]) -> set[str]:
    # What a living process has mapped is another server's, of another test or another program.
    inodes = {inode for pid in psutil.pids() for inode in orphan_reaper.shared_memory_inodes(pid)}
    return {
        path
        for path in files() - before
        if os.path.exists(path)
        and os.stat(path).st_ino not in inodes
        and _may_be_of(started, Path(path).name)
    }


def _may_be_of(started: set[str], name: str) -> bool:
    # What emberd makes bears the name of its start; SGLang's names say nothing.
    return not name.startswith(_PREFIX) or name.removeprefix(_PREFIX) in started


def files() -> set[str]:
    """Return the shared memory, and the folders for temporary files that emberd made."""
    folders = Path(tempfile.gettempdir()).glob(f"{_PREFIX}*")
    # The tests of the manager, whose servers are stubs, may run beside this one.
    shared = (path for path in _SHARED_MEMORY.iterdir() if not path.name.startswith("stub_"))
    return {str(path) for path in (*shared, *folders)}

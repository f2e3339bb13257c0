"""Predictable names in place of random ones: strace matches whole paths only."""

from __future__ import annotations

import hashlib
import os
import secrets
import uuid
from itertools import count
from pathlib import Path
from typing import Final

from emberd.manager import cleanup, idle, locks, paths, state
from emberd.manager.paths import Home
from emberd.system import atomic_file

_START_ID_BYTES: Final = 8
_WRITES: Final = 80


def make_predictable(role: str) -> None:
    """Replace what is random in this process.

    Args:
        role: A hexadecimal digit that no other process of the same home gives.
    """
    numbers, token_hex = count(), secrets.token_hex
    start_id = _start_id(os.environ["TMPDIR"])

    def new_id(nbytes: int | None = None) -> str:
        return start_id if nbytes == _START_ID_BYTES else token_hex(nbytes)

    uuid.uuid4 = lambda: uuid.UUID(f"{role}{next(numbers):011d}{0:020d}")
    secrets.token_hex = new_id


def _start_id(temporary: str) -> str:
    # Not the same in all worlds: it names a file in the shared memory, whose folder they share.
    return hashlib.sha256(temporary.encode()).hexdigest()[: 2 * _START_ID_BYTES]


def of(home: Path, temporary: Path, key: str, roles: str) -> list[Path]:
    """Return the paths of everything that emberd may have for one server.

    Args:
        home: The ``EMBERD_HOME``.
        temporary: The ``TMPDIR``.
        key: The key of the server.
        roles: The roles of the processes whose unfinished files are named.
    """
    places = Home(home)
    folder = places.server_folder(key)
    names = [
        *("lock", locks.liveness_path(folder).name, state.RECORD_NAME, idle._NAME),
        *(paths.LOG_NAME, f"{paths.LOG_NAME}.1", f"{paths.LOG_NAME}.2"),
        *("suspect", "secret.yaml"),
    ]
    unfinished = [
        f".{state.RECORD_NAME}.{role}{number:011d}{atomic_file.UNFINISHED}"
        for role in roles
        for number in range(_WRITES)
    ]
    return [
        *(home, places.machine, places.servers, places.gpu_locks.parent, places.gpu_locks),
        *(temporary / Path(cleanup.scratch_path(_start_id(str(temporary)))).name, folder),
        *(folder / name for name in (*names, *unfinished)),
    ]

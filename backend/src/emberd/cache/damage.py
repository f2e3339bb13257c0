"""What SQLite's errors say of a file, and what is done with a file that is beyond repair."""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from typing import Final

_PRIMARY: Final = 0xFF

_DAMAGE: Final = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        # Our statements are fixed: where one is refused, the tables are not what we made.
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_INTERNAL,
        sqlite3.SQLITE_TOOBIG,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_FORMAT,
        sqlite3.SQLITE_RANGE,
    }
)
_DAMAGE_IN_FULL: Final = frozenset({sqlite3.SQLITE_IOERR_SHORT_READ})

Identity = tuple[int, int]


class DamagedFileError(Exception):
    """The file holds what was never written to it."""


def is_damage(error: BaseException) -> bool:
    """Return whether an error means that the file is damaged, and not merely away, full or busy."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return isinstance(error, DamagedFileError)
    return code & _PRIMARY in _DAMAGE or code in _DAMAGE_IN_FULL


def identity(path: str) -> Identity | None:
    """Return what tells a file from another one of its name; None where there is none.

    The file is not opened: closing it again would take away the locks that SQLite has on it.
    """
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def clear_away(path: str, *, is_ours: bool) -> str:
    """Take a damaged file out of the way; return what became of it, for people.

    One that was seen to be a cache of ours is removed. What may be anybody's is kept, by another
    name: the path may have been given by mistake.

    Raises:
        OSError: It cannot be done.
    """
    fate = "was removed"
    if is_ours:
        os.remove(path)
    else:
        kept = _free_name(path)
        os.rename(path, kept)
        fate = f"was renamed to {kept}"
    # The log of the old file would be taken for the new one's.
    for end in ("-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.remove(path + end)
    return fate


def _free_name(path: str) -> str:
    number = 1
    while os.path.lexists(kept := f"{path}.damaged-{number}"):
        number += 1
    return kept

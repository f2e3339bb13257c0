"""The cache's file: a SQLite database that many processes read and write at once.

::

    entries   id | key | used      small rows: a lookup and a mark of use never touch a vector
    vectors   id | record

``used`` is no time of day but the highest id when an entry was last seen in use: it moves with what
is put in, which is all that pushes anything out.
"""

from __future__ import annotations

import math
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from emberd.cache.damage import DamagedFileError
from emberd.cache.records import Reader

APPLICATION: Final = 0x454D4231
"""How a file says that it is ours."""

_BUSY_S: Final = 10.0
_PAGE_BYTES: Final = 32768
"""Three vectors of 2,560 fill one, or six in float16. In pages of 8 KiB an index is written faster
and float16 saves a quarter only; in larger ones each put to a large cache writes more index."""
_LOG_PAGES: Final = 512
_LOG_LIMIT_BYTES: Final = 48 * 1024**2
_LOG_WAITS_S: Final = 2.0
_LOG_POLL_S: Final = 0.01
_MEMORY_KIB: Final = 16 * 1024
_LOOKUP_KEYS: Final = 500
"""Keys in one statement: older SQLites take up to 999."""
_TRANSACTION_BYTES: Final = 16 * 1024**2
"""Records that are put in one transaction: other processes wait for it."""

_CELL_BYTES: Final = 12
"""What a row takes besides its record."""
_ENTRY_BYTES: Final = 160
"""What an entry takes at most, with its share of the index."""
_KEPT: Final = 0.9
"""Share of the limit to which a full cache is cut back, so that not each put has to."""
_MARK_FROM: Final = 0.5
"""Share of the limit below which nobody marks what was used: nothing will be pushed out soon."""
_MARK_EVERY: Final = 16
"""An entry is marked again when a sixteenth of the cache has been put in since it was."""

_HIGHEST_ID: Final = 2**53
"""Ids count what was put in, from 1."""

_SETTINGS: Final = (
    "PRAGMA journal_mode = WAL",
    # A power cut may lose what was put last, which is computed again; a kill loses nothing.
    "PRAGMA synchronous = NORMAL",
    f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}",
    f"PRAGMA journal_size_limit = {_LOG_LIMIT_BYTES}",
    f"PRAGMA cache_size = -{_MEMORY_KIB}",
    "PRAGMA cell_size_check = ON",
    "PRAGMA trusted_schema = OFF",
)
_ENTRIES: Final = """\
CREATE TABLE entries (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, used INTEGER NOT NULL)"""
_VECTORS: Final = "CREATE TABLE vectors (id INTEGER PRIMARY KEY, record BLOB NOT NULL)"
_SCHEMA: Final = (_ENTRIES, _VECTORS, f"PRAGMA application_id = {APPLICATION}")

# The mark of use is cast because a damaged one may be no number.
_LOOKUP: Final = """\
SELECT key, record, id, CAST(used AS INTEGER) FROM entries JOIN vectors USING (id)
WHERE key IN ({})"""
_IDS: Final = "SELECT key, id FROM entries WHERE key IN ({})"


class ForeignFileError(Exception):
    """The file is another program's database; it is left alone."""


class Database:
    """One connection to the file, for threads that take turns.

    All methods raise ``sqlite3.Error`` where SQLite does.

    Args:
        path: The file.
        max_bytes: The size that it keeps to.

    Attributes:
        is_ours: Whether the file was seen to be a cache.
    """

    def __init__(self, path: str, max_bytes: int) -> None:
        self.is_ours = False
        self._log = f"{path}-wal"
        self._max_bytes = max_bytes
        self._connection = sqlite3.connect(
            path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
        )
        # A damaged row may hold text where bytes were put: it is not to be read as UTF-8.
        self._connection.text_factory = bytes

    def begin(self) -> None:
        """Look whose file it is; one that is empty is made a cache by a caller who has it alone.

        Raises:
            ForeignFileError: It belongs to another program.
        """
        if self._number("PRAGMA application_id") != APPLICATION:
            if self._number("SELECT count(*) FROM sqlite_master"):
                raise ForeignFileError("it is the database of another program")
            self._make()
        self.is_ours = True
        for setting in _SETTINGS:
            self._connection.execute(setting)

    def _make(self) -> None:
        self._connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        self._connection.execute(_SETTINGS[0])
        with self._transaction():
            for statement in _SCHEMA:
                self._connection.execute(statement)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def read(self, keys: Sequence[bytes], reader: Reader) -> None:
        """Give ``reader`` what there is of ``keys``, and mark it as used where that matters."""
        mark = self._mark()
        stale: list[int] = []
        for first in range(0, len(keys), _LOOKUP_KEYS):
            wanted = keys[first : first + _LOOKUP_KEYS]
            rows = self._rows(_LOOKUP.format(_marks(wanted)), wanted)
            found = {row[0]: row[1] for row in rows}
            reader.take(first, map(found.get, wanted))
            stale += [row[2] for row in rows if row[3] < mark]
        if stale:
            self._mark_used(stale)

    def write(self, records: Mapping[bytes, bytes]) -> None:
        """Put records in, those of a key that is there in its place; push out what makes room."""
        for part in _parts(records):
            with self._transaction():
                self._make_room(_space(part))
                self._put(part)
            self._shorten_log()

    def remove(self, keys: Sequence[bytes]) -> None:
        """Throw away what there is of ``keys``."""
        with self._transaction():
            ids = self._ids(keys)
            self._delete(list(ids.values()))

    def size(self) -> tuple[int, int]:
        """Return how many entries there are, and the bytes that they take."""
        return self._number("SELECT count(*) FROM entries"), self._used_bytes()

    # ---------------------------------------------------------------- putting

    def _put(self, records: Mapping[bytes, bytes]) -> None:
        ids = self._ids(list(records))
        newest = self._newest()
        for key in records:
            if key not in ids:
                newest += 1
                ids[key] = newest
        self._connection.executemany(
            "INSERT OR REPLACE INTO entries (id, key, used) VALUES (?, ?, ?)",
            ((ids[key], key, newest) for key in records),
        )
        self._connection.executemany(
            "INSERT OR REPLACE INTO vectors (id, record) VALUES (?, ?)",
            ((ids[key], record) for key, record in records.items()),
        )

    def _ids(self, keys: Sequence[bytes]) -> dict[bytes, int]:
        ids: dict[bytes, int] = {}
        for first in range(0, len(keys), _LOOKUP_KEYS):
            some = keys[first : first + _LOOKUP_KEYS]
            ids.update(self._rows(_IDS.format(_marks(some)), some))
        return ids

    def _shorten_log(self) -> None:
        # SQLite begins the log anew when nobody is at it: with several writers, hardly ever. One
        # of them empties it while the others hold still, for else it would not get its turn.
        deadline = time.monotonic() + _LOG_WAITS_S
        with suppress(FileNotFoundError):
            while os.path.getsize(self._log) > _LOG_LIMIT_BYTES and time.monotonic() < deadline:
                if self._number("PRAGMA wal_checkpoint(TRUNCATE)"):
                    time.sleep(_LOG_POLL_S)

    # ---------------------------------------------------------------- keeping to the limit

    def _make_room(self, needed: int) -> None:
        if self._used_bytes() + needed <= self._max_bytes:
            return
        wanted = max(0, int(self._max_bytes * _KEPT) - needed)
        while (used := self._used_bytes()) > wanted:
            count = self._number("SELECT count(*) FROM entries")
            if not count:
                break
            many = max(1, math.ceil(count * (used - wanted) / used))
            oldest = self._rows("SELECT id FROM entries ORDER BY used, id LIMIT ?", (many,))
            self._delete([row[0] for row in oldest])

    def _delete(self, ids: Sequence[int]) -> None:
        rows = [(number,) for number in ids]
        self._connection.executemany("DELETE FROM vectors WHERE id = ?", rows)
        self._connection.executemany("DELETE FROM entries WHERE id = ?", rows)

    def _used_bytes(self) -> int:
        pages = self._number("PRAGMA page_count") - self._number("PRAGMA freelist_count")
        return pages * self._number("PRAGMA page_size")

    def _newest(self) -> int:
        newest = self._number("SELECT ifnull(max(id), 0) FROM entries")
        if newest > _HIGHEST_ID:
            raise DamagedFileError(f"an entry has the id {newest}")
        return newest

    def _mark(self) -> int:
        """Return the mark below which an entry's is to be renewed when it is used."""
        if self._used_bytes() < self._max_bytes * _MARK_FROM:
            return 0
        newest, oldest = self._newest(), self._number("SELECT ifnull(min(id), 0) FROM entries")
        return newest - (newest - oldest) // _MARK_EVERY

    def _mark_used(self, ids: Sequence[int]) -> None:
        with self._transaction():
            newest = self._newest()
            self._connection.executemany(
                "UPDATE entries SET used = ? WHERE id = ?", ((newest, number) for number in ids)
            )

    # ---------------------------------------------------------------- statements

    def _rows(self, query: str, values: Sequence[Any]) -> list[Any]:
        return self._connection.execute(query, values).fetchall()

    def _number(self, query: str) -> int:
        return int(self._connection.execute(query).fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # At once for writing: one that began by reading could not wait for another writer.
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise


def _marks(keys: Sequence[bytes]) -> str:
    return ",".join("?" * len(keys))


def _space(records: Mapping[bytes, bytes]) -> int:
    """Return the bytes that records will take in the file: whole pages, and their entries."""
    longest = max(map(len, records.values())) + _CELL_BYTES
    in_one_page = _PAGE_BYTES // longest
    if in_one_page:
        pages = math.ceil(len(records) / in_one_page)
    else:
        pages = len(records) * (math.ceil(longest / _PAGE_BYTES) + 1)
    return pages * _PAGE_BYTES + len(records) * _ENTRY_BYTES


def _parts(records: Mapping[bytes, bytes]) -> Iterator[dict[bytes, bytes]]:
    part: dict[bytes, bytes] = {}
    size = 0
    for key, record in records.items():
        if size + len(record) > _TRANSACTION_BYTES and part:
            yield part
            part, size = {}, 0
        part[key] = record
        size += len(record)
    if part:
        yield part

"""The cache in a file: an SQLite database that many processes read and write at once.

::

    entries   id | key | used      small rows: lookups and marks of use never touch a vector
    vectors   id | record

``used`` is not a time but the highest id when the entry was last used: it advances with what is
stored, and only storing evicts anything.

SQLite's locks belong to a process, so the file is closed before a fork. A lock file beside it is
held shared during each use, and exclusively by a process that creates or replaces the file: no
transaction is open in a file that is moved away, and of two processes that find it corrupt, the
second one finds it replaced.
"""

from __future__ import annotations

import logging
import math
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Final

from emberd.cache.base import Cache, CacheStats, CircuitBreaker
from emberd.cache.records import Reader
from emberd.cache.urls import CacheUrl
from emberd.env import Places
from emberd.system import file_lock, fork

APPLICATION_ID: Final = 0x454D4231
"""Marks a database as a cache of emberd."""

_PRIVATE_FOLDER: Final = 0o700
_PRIVATE_FILE: Final = 0o600
_FORK_WAIT_S: Final = 10.0
_LOCK_WAIT_S: Final = 10.0
_BUSY_WAIT_S: Final = 10.0

_PAGE_BYTES: Final = 32768
"""Holds three vectors of 2,560 dimensions, or six in float16. With pages of 8 KiB an index is
written faster, and float16 saves only a quarter; with larger ones each put to a large cache writes
more of the index."""
_LOG_PAGES: Final = 512
_LOG_LIMIT_BYTES: Final = 48 * 1024**2
_LOG_WAIT_S: Final = 2.0
_LOG_POLL_S: Final = 0.01
_MEMORY_KIB: Final = 16 * 1024
_LOOKUP_KEYS: Final = 500
"""Keys in one statement: older versions of SQLite take up to 999."""
_TRANSACTION_BYTES: Final = 16 * 1024**2
"""Records in one transaction, for which other processes wait."""

_CELL_BYTES: Final = 12
"""What a row takes besides its record."""
_ENTRY_BYTES: Final = 160
"""What an entry takes at most, with its share of the index."""
_KEPT_SHARE: Final = 0.9
"""Share of the limit to which a full cache is reduced, so that not every put evicts."""
_MARK_FROM: Final = 0.5
"""Share of the limit below which use is not marked, because no eviction is near."""
_MARK_EVERY: Final = 16
"""An entry is marked again when a sixteenth of the cache has been stored since its last mark."""

_HIGHEST_ID: Final = 2**53
"""Ids count what was stored, from 1."""

_SETTINGS: Final = (
    "PRAGMA journal_mode = WAL",
    # A power cut may lose the latest entries, which are computed again; a kill loses none.
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
_SCHEMA: Final = (_ENTRIES, _VECTORS, f"PRAGMA application_id = {APPLICATION_ID}")

# The mark of use is cast because a corrupt one may not be a number.
_LOOKUP: Final = """\
SELECT key, record, id, CAST(used AS INTEGER) FROM entries JOIN vectors USING (id)
WHERE key IN ({})"""
_IDS: Final = "SELECT key, id FROM entries WHERE key IN ({})"
_COUNT: Final = "SELECT count(*) FROM entries"

_ADVICE: Final = "Fix the cause, or set another file: sqlite:///absolute/path.db"
_LOG: Final = logging.getLogger("emberd")


# ---------------------------------------------------------------- corruption


class CorruptFileError(Exception):
    """The file contains something that was never written to it."""


class ForeignFileError(Exception):
    """The file is a database of another program; it is not modified."""


_FAILURES: Final = (sqlite3.Error, OSError, ForeignFileError, CorruptFileError)

_PRIMARY_CODE: Final = 0xFF
_CORRUPT: Final = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        # Our statements are fixed: if one is refused, the tables are not the ones we created.
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_INTERNAL,
        sqlite3.SQLITE_TOOBIG,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_FORMAT,
        sqlite3.SQLITE_RANGE,
    }
)


def _is_corruption(error: BaseException) -> bool:
    """Return whether the file is corrupt, and not merely missing, full or busy."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return isinstance(error, CorruptFileError)
    return code & _PRIMARY_CODE in _CORRUPT or code == sqlite3.SQLITE_IOERR_SHORT_READ


def _inode(path: str) -> tuple[int, int] | None:
    """Return device and inode of a file; None if there is none.

    The file is not opened: closing it again would release the locks that SQLite has on it.
    """
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _discard(path: str, *, is_ours: bool) -> str:
    """Move a corrupt file away; return what was done with it.

    A file that was recognised as a cache of emberd is removed. Any other one is renamed, because
    the path may have been given by mistake.

    Raises:
        OSError: The file cannot be removed or renamed.
    """
    if is_ours:
        os.remove(path)
        outcome = "removed"
    else:
        number = 1
        while os.path.lexists(kept := f"{path}.damaged-{number}"):
            number += 1
        os.rename(path, kept)
        outcome = f"renamed to {kept}"
    # SQLite would take the log of the old file for the log of the new one.
    for suffix in ("-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.remove(path + suffix)
    return outcome


# ---------------------------------------------------------------- the database


class Database:
    """One connection to the file, for one thread at a time.

    All methods raise ``sqlite3.Error`` where SQLite does.

    Args:
        path: The file.
        max_bytes: The limit of its size.

    Attributes:
        is_ours: Whether the file was recognised as a cache of emberd.
    """

    def __init__(self, path: str, max_bytes: int) -> None:
        self.is_ours = False
        self._log = f"{path}-wal"
        self._max_bytes = max_bytes
        self._connection = sqlite3.connect(
            path, timeout=_BUSY_WAIT_S, isolation_level=None, check_same_thread=False
        )
        # A corrupt row may contain text instead of bytes; it must not be decoded as UTF-8.
        self._connection.text_factory = bytes

    def begin(self) -> None:
        """Check whose file it is. In an empty file, create the tables; needs the exclusive lock.

        Raises:
            ForeignFileError: The file belongs to another program.
        """
        if self._number("PRAGMA application_id") != APPLICATION_ID:
            if self._number("SELECT count(*) FROM sqlite_master"):
                raise ForeignFileError("it is a database of another program")
            self._connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            self._connection.execute(_SETTINGS[0])
            with self._transaction():
                for statement in _SCHEMA:
                    self._connection.execute(statement)
        self.is_ours = True
        for setting in _SETTINGS:
            self._connection.execute(setting)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def read(self, keys: Sequence[bytes], reader: Reader) -> None:
        """Pass the records of ``keys`` to ``reader``, and mark them as used if that matters."""
        mark = self._mark()
        stale: list[int] = []
        for first in range(0, len(keys), _LOOKUP_KEYS):
            wanted = keys[first : first + _LOOKUP_KEYS]
            rows = self._rows(_LOOKUP.format(_placeholders(wanted)), wanted)
            found = {row[0]: row[1] for row in rows}
            reader.take(first, map(found.get, wanted))
            stale += [row[2] for row in rows if row[3] < mark]
        if stale:
            with self._transaction():
                newest = self._newest()
                self._connection.executemany(
                    "UPDATE entries SET used = ? WHERE id = ?", ((newest, id_) for id_ in stale)
                )

    def write(self, records: Mapping[bytes, bytes]) -> None:
        """Store records, replacing those of the same keys; evict old ones above the limit."""
        for part in _parts(records):
            with self._transaction():
                self._evict(_space(part))
                self._put(part)
            self._truncate_log()

    def remove(self, keys: Sequence[bytes]) -> None:
        """Remove the records of ``keys``."""
        with self._transaction():
            self._delete(list(self._ids(keys).values()))

    def size(self) -> tuple[int, int]:
        """Return the number of entries and the bytes that they take."""
        return self._number(_COUNT), self._used_bytes()

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
            ids.update(self._rows(_IDS.format(_placeholders(some)), some))
        return ids

    def _truncate_log(self) -> None:
        # SQLite restarts the log only when no process uses it, which is rare with several writers.
        # So one of them empties it while the others wait.
        deadline = time.monotonic() + _LOG_WAIT_S
        with suppress(FileNotFoundError):
            while os.path.getsize(self._log) > _LOG_LIMIT_BYTES and time.monotonic() < deadline:
                if self._number("PRAGMA wal_checkpoint(TRUNCATE)"):
                    time.sleep(_LOG_POLL_S)

    def _evict(self, needed: int) -> None:
        """Delete the entries that were not used for longest, if ``needed`` bytes do not fit."""
        if self._used_bytes() + needed <= self._max_bytes:
            return
        wanted = max(0, int(self._max_bytes * _KEPT_SHARE) - needed)
        while (used := self._used_bytes()) > wanted and (count := self._number(_COUNT)):
            surplus = max(1, math.ceil(count * (used - wanted) / used))
            oldest = self._rows("SELECT id FROM entries ORDER BY used, id LIMIT ?", (surplus,))
            self._delete([row[0] for row in oldest])

    def _delete(self, ids: Sequence[int]) -> None:
        rows = [(id_,) for id_ in ids]
        self._connection.executemany("DELETE FROM vectors WHERE id = ?", rows)
        self._connection.executemany("DELETE FROM entries WHERE id = ?", rows)

    def _used_bytes(self) -> int:
        pages = self._number("PRAGMA page_count") - self._number("PRAGMA freelist_count")
        return pages * self._number("PRAGMA page_size")

    def _newest(self) -> int:
        newest = self._number("SELECT ifnull(max(id), 0) FROM entries")
        if newest > _HIGHEST_ID:
            raise CorruptFileError(f"an entry has the id {newest}")
        return newest

    def _mark(self) -> int:
        """Return the mark below which the mark of a used entry is renewed."""
        if self._used_bytes() < self._max_bytes * _MARK_FROM:
            return 0
        newest, oldest = self._newest(), self._number("SELECT ifnull(min(id), 0) FROM entries")
        return newest - (newest - oldest) // _MARK_EVERY

    def _rows(self, query: str, values: Sequence[Any]) -> list[Any]:
        return self._connection.execute(query, values).fetchall()

    def _number(self, query: str) -> int:
        return int(self._connection.execute(query).fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # Immediate: a transaction that began by reading could not wait for another writer.
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise


def _placeholders(keys: Sequence[bytes]) -> str:
    return ",".join("?" * len(keys))


def _space(records: Mapping[bytes, bytes]) -> int:
    """Return the bytes that records will take in the file: whole pages, and their entries."""
    longest = max(map(len, records.values())) + _CELL_BYTES
    if records_per_page := _PAGE_BYTES // longest:
        pages = math.ceil(len(records) / records_per_page)
    else:
        pages = len(records) * (math.ceil(longest / _PAGE_BYTES) + 1)
    return pages * _PAGE_BYTES + len(records) * _ENTRY_BYTES


def _parts(records: Mapping[bytes, bytes]) -> Iterator[dict[bytes, bytes]]:
    """Yield records in parts of at most ``_TRANSACTION_BYTES``, but of at least one record."""
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


# ---------------------------------------------------------------- the cache


class SqliteCache(Cache):
    """A cache in a file of this machine, shared by all its processes.

    Args:
        location: The parsed URL.

    Attributes:
        path: The file.
    """

    def __init__(self, location: CacheUrl) -> None:
        super().__init__(location)
        self.path: str = location.path or os.path.join(Places.resolve().home, "cache", "vectors.db")
        self._reading = CircuitBreaker(f"Reading the cache {self.path}")
        self._writing = CircuitBreaker(f"Writing to the cache {self.path}")
        self._lock = threading.RLock()
        self._database: Database | None = None
        self._opened_inode: tuple[int, int] | None = None
        self._is_fork_ready = False
        fork.register(self)

    def _read(self, keys: Sequence[bytes], reader: Reader) -> None:
        if os.path.exists(self.path):
            self._use(self._reading, lambda database: database.read(keys, reader))

    def _write(self, records: Mapping[bytes, bytes]) -> None:
        for _ in range(2):  # a file that turns out to be corrupt is a new one at the second attempt
            if self._use(self._writing, lambda database: database.write(records)):
                return

    def _remove(self, keys: Sequence[bytes]) -> None:
        self._use(self._writing, lambda database: database.remove(keys))

    def stats(self) -> CacheStats:
        """Return the counts of this object, and the size of the file."""
        sizes: list[tuple[int, int]] = []
        if not os.path.exists(self.path):
            sizes.append((0, 0))
        else:
            self._use(self._reading, lambda database: sizes.append(database.size()))
        entries, size = sizes[0] if sizes else (None, None)
        return replace(super().stats(), entries=entries, bytes=size)

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            if self._database is not None:
                with suppress(OSError), self._file_lock(shared=True):
                    self._close()
                self._close()

    # ---------------------------------------------------------------- using the file

    def _file_lock(self, *, shared: bool) -> Any:
        return file_lock.held(f"{self.path}.lock", _LOCK_WAIT_S, shared=shared)

    def _use(self, breaker: CircuitBreaker, work: Callable[[Database], object]) -> bool:
        """Call ``work`` with the database; return whether it succeeded."""
        if breaker.is_open:
            return False
        with self._lock:
            try:
                self._create()
                with self._file_lock(shared=True):
                    work(self._opened())
            except _FAILURES as error:
                self._fail(breaker, error)
                return False
            except BaseException:
                self._close()  # an interrupt may have left the connection in any state
                raise
        breaker.record_success()
        return True

    def _create(self) -> None:
        """Create the file if there is none."""
        # SQLite takes a file of one byte for an empty one.
        with suppress(FileNotFoundError):
            if os.path.getsize(self.path) > 1:
                return
        os.makedirs(os.path.dirname(self.path), _PRIVATE_FOLDER, exist_ok=True)
        with self._file_lock(shared=False):
            # SQLite would create it readable by others. An existing one is not opened: closing it
            # again would release the locks that SQLite has on it in this process.
            with suppress(FileExistsError):
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
                os.close(os.open(self.path, flags, _PRIVATE_FILE))
            self._opened()

    def _opened(self) -> Database:
        """Return the open database, reopened if the file was replaced. Needs the file lock."""
        inode = _inode(self.path)
        if self._database is None or inode != self._opened_inode:
            self._close()
            self._opened_inode = inode
            self._database = Database(self.path, self._location.max_bytes)
            self._close_database = weakref.finalize(self, self._database.close)
            self._database.begin()
        return self._database

    def _close(self) -> None:
        if self._database is not None:
            self._database = None
            with suppress(sqlite3.Error):
                self._close_database()

    # ---------------------------------------------------------------- failures

    def _fail(self, breaker: CircuitBreaker, error: Exception) -> None:
        try:
            if _is_corruption(error):
                self._recreate(error)
            else:
                breaker.record_failure(error, _ADVICE)
        except OSError as trouble:
            breaker.record_failure(f"{error}; and it cannot be replaced: {trouble}", _ADVICE)
        finally:
            self._close()

    def _recreate(self, error: Exception) -> None:
        """Discard the corrupt file, unless another process has done so already."""
        is_ours = self._database is not None and self._database.is_ours
        with self._file_lock(shared=False):
            self._close()
            if self._opened_inode is None or _inode(self.path) != self._opened_inode:
                return
            outcome = _discard(self.path, is_ours=is_ours)
        self._count(recovered=1)
        _LOG.warning(
            "The cache %s was corrupt (%s). It was %s and will be recreated.",
            self.path,
            error,
            outcome,
        )

    # ---------------------------------------------------------------- forks

    def before_fork(self) -> None:
        """Wait for the thread that uses the file, and close it."""
        self._is_fork_ready = self._lock.acquire(timeout=_FORK_WAIT_S)
        if self._is_fork_ready:
            self.close()

    def after_fork_in_parent(self) -> None:
        """Let threads continue; they open the file again."""
        if self._is_fork_ready:
            self._lock.release()

    def after_fork_in_child(self) -> None:
        """Start without an open file, and with a new lock."""
        super().after_fork_in_child()
        self._lock = threading.RLock()
        if self._database is not None:
            self._close_database.detach()
            fork.keep_inherited(self._database)
            self._database = None

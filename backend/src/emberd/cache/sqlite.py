"""The cache in a file: an SQLite database that many processes read and write at once.

::

    entries   id | key | used      small rows, for lookups and for the order of eviction
    vectors   id | record

``used`` is the highest id that existed when the entry was last used. It orders the entries for
eviction and grows only when entries are stored, which is also the only time when entries are
evicted.

A vector that another user has written would be believed. So the file, those that SQLite keeps
beside it, and their folder are used only if no other user can have written them.

SQLite's locks belong to a process, so the file is closed before a fork. A lock file beside it is
held while the database is opened, so that only one process creates the tables. A file that is
deleted or replaced while it is open is noticed at the next use. A corrupt file is not repaired:
there is a warning, and the cache is not used until the file is deleted.
"""

from __future__ import annotations

import math
import os
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Final, TypeVar

from emberd.cache.cache import Cache, CacheStats, CircuitBreaker
from emberd.cache.urls import CacheUrl
from emberd.env import Places
from emberd.errors import StateFolderError
from emberd.system import file_lock, fork, ownership

APPLICATION_ID: Final = 0x454D4231
"""Marks a database as a cache of emberd."""

_PRIVATE_FOLDER: Final = 0o700
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
_SCHEMA: Final = (
    (
        "CREATE TABLE entries "
        "(id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, used INTEGER NOT NULL)"
    ),
    "CREATE TABLE vectors (id INTEGER PRIMARY KEY, record BLOB NOT NULL)",
    f"PRAGMA application_id = {APPLICATION_ID}",
)

# The mark of use is cast because a corrupt one may not be a number.
_LOOKUP: Final = """\
SELECT key, record, id, CAST(used AS INTEGER) FROM entries JOIN vectors USING (id)
WHERE key IN ({})"""
_IDS: Final = "SELECT key, id FROM entries WHERE key IN ({})"
_COUNT: Final = "SELECT count(*) FROM entries"
_OLDEST: Final = "SELECT id FROM entries ORDER BY used, id LIMIT ?"

_BESIDE: Final = ("-wal", "-shm", "-journal")
"""Suffixes of the files beside the database that SQLite reads."""

_UNUSED: Final = "so its vectors are not used"

_ADVICE: Final = (
    "If the file is corrupt, delete it together with its -wal and -shm files; otherwise fix the "
    "cause, or set another file: sqlite:///absolute/path.db"
)

T = TypeVar("T")


class Database:
    """One connection to the file, for one thread at a time.

    All methods raise ``sqlite3.Error`` where SQLite does.

    Args:
        path: The file.
        max_bytes: The limit of its size.
    """

    def __init__(self, path: str, max_bytes: int) -> None:
        self._log = f"{path}-wal"
        self._max_bytes = max_bytes
        self._connection = sqlite3.connect(
            path, timeout=_BUSY_WAIT_S, isolation_level=None, check_same_thread=False
        )
        # A corrupt row may contain text instead of bytes; it must not be decoded as UTF-8.
        self._connection.text_factory = bytes

    def begin(self) -> None:
        """Check whose file it is. In an empty file, create the tables; needs the file lock."""
        if self._number("PRAGMA application_id") != APPLICATION_ID:
            if self._number("SELECT count(*) FROM sqlite_master"):
                raise sqlite3.DatabaseError("it is a database of another program")
            self._connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            self._connection.execute(_SETTINGS[0])
            with self._transaction():
                for statement in _SCHEMA:
                    self._connection.execute(statement)
        for setting in _SETTINGS:
            self._connection.execute(setting)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def read(self, keys: Sequence[bytes]) -> dict[bytes, Any]:
        """Return the records of ``keys``, and mark them as used if that matters."""
        mark = self._mark()
        rows = self._rows(_LOOKUP, keys)
        if stale := [row[2] for row in rows if row[3] < mark]:
            with self._transaction():
                newest = self._newest()
                self._connection.executemany(
                    "UPDATE entries SET used = ? WHERE id = ?", ((newest, id_) for id_ in stale)
                )
        return {row[0]: row[1] for row in rows}

    def write(self, records: Mapping[bytes, bytes]) -> None:
        """Store records, replacing those of the same keys; evict old ones above the limit."""
        with self._transaction():
            self._evict(_space(records))
            ids = dict(self._rows(_IDS, list(records)))
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
        self._truncate_log()

    def remove(self, keys: Sequence[bytes]) -> None:
        """Remove the records of ``keys``."""
        with self._transaction():
            self._delete([(id_,) for _, id_ in self._rows(_IDS, keys)])

    def size(self) -> tuple[int, int]:
        """Return the number of entries and the bytes that they take."""
        return self._number(_COUNT), self._used_bytes()

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
            oldest = self._connection.execute(_OLDEST, (surplus,))
            self._delete(oldest.fetchall())

    def _delete(self, ids: Sequence[tuple[int]]) -> None:
        self._connection.executemany("DELETE FROM vectors WHERE id = ?", ids)
        self._connection.executemany("DELETE FROM entries WHERE id = ?", ids)

    def _used_bytes(self) -> int:
        pages = self._number("PRAGMA page_count") - self._number("PRAGMA freelist_count")
        return pages * self._number("PRAGMA page_size")

    def _newest(self) -> int:
        newest = self._number("SELECT ifnull(max(id), 0) FROM entries")
        if newest > _HIGHEST_ID:
            raise sqlite3.DatabaseError(f"an entry has the id {newest}")
        return newest

    def _mark(self) -> int:
        """Return the mark below which the mark of a used entry is renewed."""
        if self._used_bytes() < self._max_bytes * _MARK_FROM:
            return 0
        newest, oldest = self._newest(), self._number("SELECT ifnull(min(id), 0) FROM entries")
        return newest - (newest - oldest) // _MARK_EVERY

    def _rows(self, query: str, keys: Sequence[bytes]) -> list[Any]:
        placeholders = ",".join("?" * len(keys))
        return self._connection.execute(query.format(placeholders), keys).fetchall()

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


def _space(records: Mapping[bytes, bytes]) -> int:
    """Return the bytes that records will take in the file: whole pages, and their entries."""
    longest = max(map(len, records.values())) + _CELL_BYTES
    if records_per_page := _PAGE_BYTES // longest:
        pages = math.ceil(len(records) / records_per_page)
    else:
        pages = len(records) * (math.ceil(longest / _PAGE_BYTES) + 1)
    return pages * _PAGE_BYTES + len(records) * _ENTRY_BYTES


def _inode(path: str) -> tuple[int, int] | None:
    """Return device and inode of a file; None if there is none.

    The file is not opened: closing it again would release the locks that SQLite has on it.
    """
    try:
        facts = os.lstat(path)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _check_files(path: str) -> None:
    """Check that no other user can have written the cache ``path``, in a folder that was checked.

    The files are not opened, see ``_inode``; in that folder, no other user can replace them.

    Raises:
        StateFolderError: Another user can, or it is not a regular file.
    """
    for file in (path, *(f"{path}{suffix}" for suffix in _BESIDE)):
        with suppress(FileNotFoundError):
            facts = os.lstat(file)
            if stat.S_ISLNK(facts.st_mode):
                raise StateFolderError(
                    f"{file} is a symbolic link. Set the cache to the file itself: "
                    f"sqlite://{os.path.realpath(file)}"
                )
            if not stat.S_ISREG(facts.st_mode):
                raise StateFolderError(f"{file} is not a regular file. Remove it.")
            ownership.check(file, facts, so=_UNUSED)


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

    def _read(self, keys: Sequence[bytes]) -> Mapping[bytes, Any]:
        if not os.path.exists(self.path):
            return {}
        return self._use(self._reading, lambda database: database.read(keys)) or {}

    def _write(self, records: Mapping[bytes, bytes]) -> None:
        self._use(self._writing, lambda database: database.write(records))

    def _remove(self, keys: Sequence[bytes]) -> None:
        self._use(self._writing, lambda database: database.remove(keys))

    def stats(self) -> CacheStats:
        """Return the counts of this object, and the size of the file."""
        entries: int | None = 0
        size: int | None = 0
        if os.path.exists(self.path):
            entries, size = self._use(self._reading, Database.size) or (None, None)
        return replace(super().stats(), entries=entries, bytes=size)

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            self._close()

    def _use(self, breaker: CircuitBreaker, work: Callable[[Database], T]) -> T | None:
        """Return what ``work`` returns, called with the database; None if the file fails."""
        if breaker.is_open:
            return None
        with self._lock:
            try:
                result = work(self._opened())
            except StateFolderError as error:  # says itself what to do
                self._close()
                breaker.record_failure(str(error).rstrip("."))
                return None
            except (sqlite3.Error, OSError) as error:
                self._close()
                breaker.record_failure(error, _ADVICE)
                return None
            except BaseException:
                self._close()  # an interrupt may have left the connection in any state
                raise
        breaker.record_success()
        return result

    def _opened(self) -> Database:
        """Return the open database; reopened if the file was replaced, created if there is none."""
        if self._database is not None and self._opened_inode == _inode(self.path):
            return self._database
        self._close()
        folder = os.path.dirname(self.path)
        os.makedirs(folder, _PRIVATE_FOLDER, exist_ok=True)
        # Root may own it: a volume, for example, in which the files belong to this user.
        ownership.check_folder(os.path.realpath(folder), by_root=True, so=_UNUSED)
        with file_lock.held(f"{self.path}.lock", _LOCK_WAIT_S):
            # SQLite would create it readable by others. An existing one is not opened: closing it
            # again would release the locks that SQLite has on it in this process.
            with suppress(FileExistsError):
                os.close(ownership.open_file(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL))
            _check_files(self.path)
            self._opened_inode = _inode(self.path)
            self._database = Database(self.path, self._location.max_bytes)
            self._close_database = weakref.finalize(self, self._database.close)
            self._database.begin()
        return self._database

    def _close(self) -> None:
        if self._database is not None:
            self._database = None
            with suppress(sqlite3.Error):
                self._close_database()

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

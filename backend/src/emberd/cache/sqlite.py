"""What SQLite's errors say of a file, and what is done with a file that is beyond repair.

The cache's file: a SQLite database that many processes read and write at once.

::

    entries   id | key | used      small rows: a lookup and a mark of use never touch a vector
    vectors   id | record

``used`` is no time of day but the highest id when an entry was last seen in use: it moves with what
is put in, which is all that pushes anything out.

The cache in a file: opened when needed, closed over a fork, begun anew when it is damaged.
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
from typing import Any, Final

from emberd.cache import guard, records
from emberd.cache.base import Absence, CacheStats, Counts, Found
from emberd.cache.records import Floats, Reader
from emberd.cache.urls import Place
from emberd.env import Places
from emberd.system import fork
from emberd.system.fork import ForkAware

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


_LOG: Final = logging.getLogger("emberd")
_PRIVATE_FOLDER: Final = 0o700
_PRIVATE_FILE: Final = 0o600
_FORK_WAITS_S: Final = 10.0

_TROUBLE: Final = (sqlite3.Error, OSError, ForeignFileError, DamagedFileError)
_ADVICE: Final = "Mend what is wrong there, or give another file: sqlite:///absolute/path.db"


class SqliteCache(ForkAware):
    """A cache in a file of this machine, shared by all its processes.

    Args:
        place: What its URL says.

    Attributes:
        path: The file.
    """

    def __init__(self, place: Place) -> None:
        self.path: str = place.path or os.path.join(Places.resolve().home, "cache", "vectors.db")
        self._place = place
        self._counts = Counts()
        self._reading = Absence(f"Reading the cache {self.path}")
        self._writing = Absence(f"Writing to the cache {self.path}")
        self._lock = threading.RLock()
        self._database: Database | None = None
        self._identity: Identity | None = None
        self._is_fork_ready = False
        fork.register(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._place,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._place.url!r})"

    def get_many(self, keys: Sequence[bytes], dimensions: int | None = None) -> Found:
        """Return what there is of ``keys``; see ``Cache``."""
        reader = records.Reader(keys, self._place.dtype, dimensions)
        if os.path.exists(self.path):
            self._use(self._reading, lambda database: database.read(keys, reader))
        found = reader.found()
        hits = int(found.mask.sum())
        self._counts.add(hits=hits, misses=len(keys) - hits, healed=len(reader.bad))
        if reader.bad:
            self._use(self._writing, lambda database: database.remove(reader.bad))
        return found

    def put_many(self, keys: Sequence[bytes], vectors: Floats) -> None:
        """Keep vectors; see ``Cache``."""
        made = records.encode(keys, vectors, self._place.dtype)
        for _ in range(2):  # a file that turns out to be damaged is a new one at the second try
            if not made or self._use(self._writing, lambda database: database.write(made)):
                return

    def stats(self) -> CacheStats:
        """Return the counts, and how much the file holds."""
        if not os.path.exists(self.path):
            return self._counts.stats(0, 0)
        sizes: list[tuple[int, int]] = []
        self._use(self._reading, lambda database: sizes.append(database.size()))
        return self._counts.stats(*sizes[0]) if sizes else self._counts.stats()

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            if self._database is not None:
                with suppress(OSError), guard.shared(self._guard):
                    self._close()
                self._close()

    # ---------------------------------------------------------------- using the file

    @property
    def _guard(self) -> str:
        return f"{self.path}.lock"

    def _use(self, absence: Absence, work: Callable[[Database], object]) -> bool:
        """Do ``work`` on the file; return whether it was done."""
        if absence.lasts:
            return False
        with self._lock:
            try:
                self._make()
                with guard.shared(self._guard):
                    work(self._opened())
            except _TROUBLE as error:
                self._fail(absence, error)
                return False
            except BaseException:
                self._close()  # interrupted at any point: what is open may be in the middle of it
                raise
        absence.end()
        return True

    def _make(self) -> None:
        """Make the file where there is none."""
        # SQLite takes a file of one byte for an empty one.
        if _size(self.path) > 1:
            return
        folder = os.path.dirname(self.path)
        os.makedirs(folder, _PRIVATE_FOLDER, exist_ok=True)
        with guard.alone(self._guard):
            # SQLite would let others read it. An existing one is not opened: closing it again
            # would take away the locks that SQLite has on it in this process.
            with suppress(FileExistsError):
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                os.close(os.open(self.path, flags, _PRIVATE_FILE))
            self._opened()

    def _opened(self) -> Database:
        """Return the open file; one that was replaced since is let go of. The guard is held."""
        found = identity(self.path)
        if self._database is None or found != self._identity:
            self._close()
            self._identity = found
            self._database = Database(self.path, self._place.max_bytes)
            self._at_end = weakref.finalize(self, self._database.close)
            self._database.begin()
        return self._database

    def _close(self) -> None:
        if self._database is not None:
            self._database = None
            with suppress(sqlite3.Error):
                self._at_end()

    # ---------------------------------------------------------------- when it fails

    def _fail(self, absence: Absence, error: Exception) -> None:
        try:
            if is_damage(error):
                self._heal(error)
            else:
                absence.begin(error, _ADVICE)
        except OSError as trouble:
            absence.begin(f"{error}; and it cannot be replaced: {trouble}", _ADVICE)
        finally:
            self._close()

    def _heal(self, error: Exception) -> None:
        """Take the damaged file out of the way, unless another process has done so already."""
        is_ours = self._database is not None and self._database.is_ours
        with guard.alone(self._guard):
            self._close()
            if self._identity is None or identity(self.path) != self._identity:
                return
            fate = clear_away(self.path, is_ours=is_ours)
        self._counts.add(healed=1)
        _LOG.warning(
            "The cache %s is damaged (%s). It %s, and begins anew.", self.path, error, fate
        )

    # ---------------------------------------------------------------- forks

    def before_fork(self) -> None:
        """Wait for the thread that uses the file, and close it."""
        self._is_fork_ready = self._lock.acquire(timeout=_FORK_WAITS_S)
        if self._is_fork_ready:
            self.close()

    def after_fork_in_parent(self) -> None:
        """Let threads go on, which open the file again."""
        if self._is_fork_ready:
            self._lock.release()

    def after_fork_in_child(self) -> None:
        """Begin without a file, and without a lock that nobody might let go of."""
        self._lock = threading.RLock()
        self._counts.reset_after_fork()
        if self._database is not None:
            self._at_end.detach()
            fork.keep_inherited(self._database)
            self._database = None


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except FileNotFoundError:
        return 0

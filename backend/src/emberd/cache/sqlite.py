"""The cache in a file: opened when needed, closed over a fork, begun anew when it is damaged."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from emberd.cache import damage, guard, records
from emberd.cache.absence import Absence
from emberd.cache.base import CacheStats, Counts, Found
from emberd.cache.database import Database, ForeignFileError
from emberd.cache.records import Floats
from emberd.cache.urls import Place
from emberd.env import Places
from emberd.system import fork
from emberd.system.fork import ForkAware

_LOG: Final = logging.getLogger("emberd")
_PRIVATE_FOLDER: Final = 0o700
_PRIVATE_FILE: Final = 0o600
_FORK_WAITS_S: Final = 10.0

_TROUBLE: Final = (sqlite3.Error, OSError, ForeignFileError, damage.DamagedFileError)
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
        self._identity: damage.Identity | None = None
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
        found = damage.identity(self.path)
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
            if damage.is_damage(error):
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
            if self._identity is None or damage.identity(self.path) != self._identity:
                return
            fate = damage.clear_away(self.path, is_ours=is_ours)
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

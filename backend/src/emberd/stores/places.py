"""Where each vector store keeps the identity of an index.

====================  ===================================================
Chroma, Qdrant        metadata of the collection, key ``emberd``
Milvus                property of the collection, key ``emberd``
LanceDB               a table ``emberd_identity_NAME`` beside the table
PostgreSQL            comment of the table
SQLite                the table ``emberd``, a row for each index
files                 ``emberd-identity.txt`` in the folder of the index
====================  ===================================================
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

from emberd import env
from emberd.errors import EmberdError, SettingError
from emberd.system import atomic_file, file_lock, ownership

KEY: Final = "emberd"
"""Key of the identity in metadata, and name of its table."""

_LOCK_S: Final = 60.0
_FILE_MODE: Final = 0o644  # whoever may read the index may read what it was made with


class Place(ABC):
    """Where one index keeps its identity.

    Attributes:
        title: Which index, as the subject of a sentence.
    """

    kind: ClassVar[str]

    def __init__(self, name: str) -> None:
        self.name = name
        self.title = f"The {self.kind} {name!r}"

    @abstractmethod
    def read(self) -> str | None:
        """Return what is stored now; None if nothing is."""

    @abstractmethod
    def write(self, identity: str) -> None:
        """Store ``identity`` in place of what is stored."""

    @abstractmethod
    def exists(self) -> bool:
        """Return whether there is an index."""

    @abstractmethod
    def is_empty(self) -> bool:
        """Return whether the index, which exists, has no rows."""

    def claim(self, identity: str) -> None:
        """Store ``identity`` unless another process has stored one in the meantime."""
        with self.locked(_LOCK_S):
            if self.read() is None:
                self.write(identity)

    @contextmanager
    def locked(self, timeout_s: float, purpose: str = "") -> Iterator[None]:
        """Hold a lock on this index among the processes of this user on this machine.

        Raises:
            EmberdError: Another process holds it.
        """
        folder = ownership.make_private(Path(env.home_folder()) / "index-locks")
        digest = hashlib.sha256(f"{self.title}\n{purpose}".encode()).hexdigest()[:32]
        try:
            with file_lock.held(folder / digest, timeout_s, note=f"process {os.getpid()}"):
                yield
        except file_lock.LockHeldError as error:
            raise EmberdError(
                f"{self.title} is in use by another emberd ({error.holder or 'just started'}). "
                f"Wait until it ends, or end it: finished work is kept."
            ) from None


class _FilePlace(Place):
    """An index in files; its name is the folder or the file to which it is saved."""

    kind = "index"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._saved = Path(name)
        self._file = self._saved.with_name(f"{self._saved.name}.emberd-identity")
        if self._saved.is_dir() or not (self._saved.exists() or self._saved.suffix):
            self._file = self._saved / "emberd-identity.txt"

    def read(self) -> str | None:
        try:
            return self._file.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None

    def write(self, identity: str) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        atomic_file.write(self._file, f"{identity}\n".encode(), mode=_FILE_MODE)

    def exists(self) -> bool:
        return self._saved.exists()

    def is_empty(self) -> bool:
        return self._saved.is_dir() and not any(self._saved.iterdir())


class _ClientPlace(Place):
    def __init__(self, client: Any, name: str) -> None:
        super().__init__(name)
        self._client = client

    def _require(self) -> None:
        if not self.exists():
            raise SettingError(
                f"{self.title} does not exist yet, so there is no place for its identity. Create "
                f"the collection first; docs/vector-stores.md shows how for each store."
            )


class _ChromaPlace(_ClientPlace):
    """A collection of Chroma."""

    kind = "Chroma collection"

    def read(self) -> str | None:
        collection = self._collection()
        return None if collection is None else (collection.metadata or {}).get(KEY)

    def write(self, identity: str) -> None:
        self._require()
        collection = self._collection()
        # A change replaces all metadata. The space is refused there, and kept as configuration.
        kept = {k: v for k, v in (collection.metadata or {}).items() if not k.startswith("hnsw:")}
        collection.modify(metadata={**kept, KEY: identity})

    def exists(self) -> bool:
        return self._collection() is not None

    def is_empty(self) -> bool:
        return bool(self._collection().count() == 0)

    def _collection(self) -> Any:
        from chromadb.errors import NotFoundError

        # A collection object does not notice what other processes change.
        try:
            return self._client.get_collection(self.name, embedding_function=None)
        except NotFoundError:
            return None


class _QdrantPlace(_ClientPlace):
    """A collection of Qdrant."""

    kind = "Qdrant collection"

    def read(self) -> str | None:
        if not self.exists():
            return None
        return (self._client.get_collection(self.name).config.metadata or {}).get(KEY)

    def write(self, identity: str) -> None:
        self._require()
        self._client.update_collection(self.name, metadata={KEY: identity})

    def exists(self) -> bool:
        return bool(self._client.collection_exists(self.name))

    def is_empty(self) -> bool:
        return bool(self._client.count(self.name, exact=True).count == 0)


class _MilvusPlace(_ClientPlace):
    """A collection of Milvus."""

    kind = "Milvus collection"

    def read(self) -> str | None:
        if not self.exists():
            return None
        found = self._client.describe_collection(self.name).get("properties") or {}
        return dict(found).get(KEY)

    def write(self, identity: str) -> None:
        self._require()
        self._client.alter_collection_properties(self.name, {KEY: identity})

    def exists(self) -> bool:
        return bool(self._client.has_collection(self.name))

    def is_empty(self) -> bool:
        # The number in its statistics does not include the latest rows.
        self._client.load_collection(self.name)
        (found,) = self._client.query(
            self.name, filter="", output_fields=["count(*)"], consistency_level="Strong"
        )
        return int(found["count(*)"]) == 0


class _LancePlace(_ClientPlace):
    """A table of LanceDB, which exists only when it has rows."""

    kind = "LanceDB table"

    def read(self) -> str | None:
        table = self._open(self._table)
        return None if table is None else str(table.to_arrow()["identity"][0].as_py())

    def write(self, identity: str) -> None:
        self._client.create_table(self._table, [{"identity": identity}], mode="overwrite")

    def exists(self) -> bool:
        return self._open(self.name) is not None

    def is_empty(self) -> bool:
        return bool(self._open(self.name).count_rows() == 0)

    @property
    def _table(self) -> str:
        return f"emberd_identity_{self.name}"

    def _open(self, table: str) -> Any:
        try:
            return self._client.open_table(table)
        except (FileNotFoundError, ValueError):  # which of them depends on the version
            return None


class _PostgresPlace(_ClientPlace):
    """A table of PostgreSQL; the client is a synchronous engine of SQLAlchemy."""

    kind = "PostgreSQL table"

    def read(self) -> str | None:
        with self._client.connect() as connection:
            return self._comment(connection)

    def write(self, identity: str) -> None:
        self._require()
        with self._client.begin() as connection:
            self._write(connection, identity)

    def claim(self, identity: str) -> None:
        """Store ``identity`` unless there is one, on whichever machine it was stored."""
        self._require()
        with self._client.begin() as connection:
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('emberd identity'))")
            if self._comment(connection) is None:
                self._write(connection, identity)

    def exists(self) -> bool:
        with self._client.connect() as connection:
            found = connection.exec_driver_sql(f"SELECT to_regclass('{self._quoted}')")
            return found.scalar() is not None

    def is_empty(self) -> bool:
        with self._client.connect() as connection:
            rows = connection.exec_driver_sql(f"SELECT 1 FROM {self._quoted} LIMIT 1")  # noqa: S608
            return rows.first() is None

    def _comment(self, connection: Any) -> str | None:
        found = connection.exec_driver_sql(
            f"SELECT obj_description(to_regclass('{self._quoted}'), 'pg_class')"
        )
        comment: str | None = found.scalar()
        return comment

    def _write(self, connection: Any, identity: str) -> None:
        from sqlalchemy import text

        # A comment takes no parameters.
        literal = identity.replace("'", "''").replace(":", "\\:")
        connection.execute(text(f"COMMENT ON TABLE {self._quoted} IS '{literal}'"))

    @property
    def _quoted(self) -> str:
        quote = self._client.dialect.identifier_preparer.quote
        return ".".join(quote(part) for part in self.name.replace("'", "''").split("."))


class _SqlitePlace(_ClientPlace):
    """A table of SQLite; the client is a connection."""

    kind = "SQLite table"

    def read(self) -> str | None:
        if not self._has(KEY):
            return None
        found = self._client.execute(f"SELECT identity FROM {KEY} WHERE name = ?", [self.name])  # noqa: S608
        row = found.fetchone()
        return None if row is None else str(row[0])

    def write(self, identity: str) -> None:
        self._insert("REPLACE", identity)

    def claim(self, identity: str) -> None:
        """Store ``identity`` unless there is one."""
        self._insert("IGNORE", identity)

    def exists(self) -> bool:
        return self._has(self.name)

    def is_empty(self) -> bool:
        table = self.name.replace('"', '""')
        return self._client.execute(f'SELECT 1 FROM "{table}" LIMIT 1').fetchone() is None  # noqa: S608

    def _insert(self, conflict: str, identity: str) -> None:
        with self._client:
            self._client.execute(
                f"CREATE TABLE IF NOT EXISTS {KEY} (name TEXT PRIMARY KEY, identity TEXT)"
            )
            row = [self.name, identity]
            self._client.execute(f"INSERT OR {conflict} INTO {KEY} VALUES (?, ?)", row)  # noqa: S608

    def _has(self, table: str) -> bool:
        asked = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
        return self._client.execute(asked, [table]).fetchone() is not None


# The package of a client -> the place in its store.
_PLACES: Final[dict[str, type[_ClientPlace]]] = {
    "chromadb": _ChromaPlace,
    "qdrant_client": _QdrantPlace,
    "pymilvus": _MilvusPlace,
    "lancedb": _LancePlace,
    "sqlalchemy": _PostgresPlace,
    "sqlite3": _SqlitePlace,
    "pysqlite3": _SqlitePlace,
}


def find(store: Any, at: Any = None) -> Place:
    """Return the place of an index.

    Args:
        store: A vector store of LangChain or LlamaIndex. One with the public attributes ``client``
            and ``collection_name`` says itself where it is.
        at: Otherwise a client and a name, or the path to which the index is saved.

    Raises:
        SettingError: The place is unknown; the text says what to pass.
    """
    if at is None:
        at = getattr(store, "client", None), getattr(store, "collection_name", None)
    if isinstance(at, str | os.PathLike):
        return _FilePlace(os.path.abspath(os.fsdecode(at)))
    if isinstance(at, tuple) and len(at) == 2 and isinstance(at[1], str):  # noqa: PLR2004 - a pair
        client, name = at
        packages = [kind.__module__.partition(".")[0] for kind in type(client).__mro__]
        found = next((_PLACES[package] for package in packages if package in _PLACES), None)
        is_usable = type(client).__name__ not in ("Collection", "AsyncEngine")
        if found and name and is_usable:
            return found(client, name)
    raise SettingError(
        f"It is unknown where {type(store).__name__} keeps its index. Pass at=(client, name), with "
        f"a client of chromadb, qdrant_client, pymilvus or lancedb, a synchronous engine of "
        f"SQLAlchemy or a connection of sqlite3, and the name of the collection or table; or "
        f"at=PATH, the path to which the index is saved."
    )

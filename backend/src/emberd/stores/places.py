"""Where each vector store keeps the identity of an index.

====================  ===================================================
Chroma, Qdrant        metadata of the collection, key ``emberd``
Milvus                property of the collection, key ``emberd``
PostgreSQL            a line of the comment of the table
SQLite                a trigger of the table, which does nothing
LanceDB               a table ``emberd_identity_NAME`` beside the table
files                 ``emberd-identity.txt`` in the folder of the index,
                      or ``NAME.emberd-identity`` beside it
====================  ===================================================

An identity that is stored counts, whether the index has rows or not. The first five places are
dropped with the index, and need an index that exists. The identity of a table of LanceDB and of an
index in files can be stored before the index exists, and can remain when the index is deleted.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

from emberd import env
from emberd.errors import EmberdError, SettingError
from emberd.system import atomic_file, file_lock, ownership

KEY: Final = "emberd"
"""Key of the identity in metadata."""

_LOCK_S: Final = 60.0
_FILE_MODE: Final = 0o644  # who may read the index may read its identity
_IN_FOLDER: Final = "emberd-identity.txt"
_TRIGGER: Final = "emberd_identity_"
_SAVED: Final = re.compile(r"emberd:\S+")


class Place(ABC):
    """Where one index keeps its identity.

    Attributes:
        title: Which index, as the subject of a sentence.
        leftover: What to delete if the index was deleted without its identity; may be empty.
    """

    kind: ClassVar[str]
    leftover = ""

    def __init__(self, name: str) -> None:
        self.name = name
        self.title = f"The {self.kind} {name!r}"

    @abstractmethod
    def read(self) -> str | None:
        """Return what is stored now; None if nothing is."""

    @abstractmethod
    def exists(self) -> bool:
        """Return whether there is an index."""

    @abstractmethod
    def is_empty(self) -> bool:
        """Return whether the index, which exists, has no rows."""

    @abstractmethod
    def _write(self, identity: str) -> None:
        """Store ``identity`` in place of what is stored."""

    def has_rows(self) -> bool:
        """Return whether there is an index with rows."""
        return self.exists() and not self.is_empty()

    def write(self, identity: str) -> None:
        """Store ``identity`` in place of what is stored.

        Raises:
            EmberdError: The store did not keep it.
        """
        self._write(identity)
        self.require_kept(identity)

    def claim(self, identity: str) -> str:
        """Store ``identity`` unless one is stored.

        Returns:
            What is stored now.

        Raises:
            EmberdError: The store did not keep it.
        """
        if (kept := self.read()) is not None:
            return kept
        with self._claiming():
            if self.read() is None:
                self._write(identity)
        return self.require_kept()

    def _claiming(self) -> AbstractContextManager[None]:
        """Exclude other claims for the duration of a block."""
        return self.locked(_LOCK_S)

    def require_kept(self, identity: str | None = None) -> str:
        """Return what is stored now.

        Raises:
            EmberdError: No identity is, although it was written; or it is not ``identity``.
        """
        kept = self.read()
        if kept is None or kept != (identity or kept):
            raise EmberdError(
                f"{self.title} did not keep the identity that was stored: this version of the "
                f"store does not support metadata of a collection. Update the store."
            )
        return kept

    @contextmanager
    def locked(self, timeout_s: float, purpose: str = "") -> Iterator[None]:
        """Hold a lock on this index among the processes of this user on this machine.

        Raises:
            EmberdError: Another process holds it.
        """
        folder = ownership.make_private(Path(env.home_folder()) / "index-locks")
        # Another index may have the same title, and then shares the lock of claims.
        digest = hashlib.sha256(f"{self.title}\n{purpose}".encode()).hexdigest()[:32]
        try:
            with file_lock.held(folder / digest, timeout_s, note=f"process {os.getpid()}"):
                yield
        except file_lock.LockHeldError as error:
            raise EmberdError(
                f"{self.title} is in use by another emberd ({error.holder or 'just started'}). "
                f"Wait until it ends, or end it: finished work is kept."
            ) from None


def _leftover(what: str) -> str:
    return f"If the index of this identity was deleted, delete {what} too."


class _FilePlace(Place):
    """An index in files; its name is the folder or the file to which it is saved."""

    kind = "index"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._saved = Path(name)
        # What is at the path, and when, depends on the store: both files are read.
        self._inside = self._saved / _IN_FOLDER
        self._beside = self._saved.with_name(f"{self._saved.name}.emberd-identity")
        self.leftover = _leftover(f"{self._inside} and {self._beside}")

    def read(self) -> str | None:
        for file in (self._inside, self._beside):
            try:
                return file.read_text(encoding="utf-8").strip()
            except (FileNotFoundError, NotADirectoryError):
                continue
        return None

    def _write(self, identity: str) -> None:
        file = self._inside if self._saved.is_dir() else self._beside
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_file.write(file, f"{identity}\n".encode(), mode=_FILE_MODE)

    def exists(self) -> bool:
        return self._saved.exists()

    def is_empty(self) -> bool:
        return self._saved.is_dir() and all(
            each.name == _IN_FOLDER for each in self._saved.iterdir()
        )


class _ClientPlace(Place):
    def __init__(self, client: Any, name: str) -> None:
        super().__init__(name)
        self._client = client

    def _require(self) -> None:
        if not self.exists():
            raise SettingError(
                f"{self.title} does not exist yet, so there is no place for its identity. Create "
                f"it first; docs/vector-stores.md shows how for each store."
            )


class _ChromaPlace(_ClientPlace):
    """A collection of Chroma."""

    kind = "Chroma collection"

    def read(self) -> str | None:
        collection = self._collection()
        return None if collection is None else (collection.metadata or {}).get(KEY)

    def _write(self, identity: str) -> None:
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

    def _write(self, identity: str) -> None:
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

    def _write(self, identity: str) -> None:
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
    """A table of LanceDB, which the frameworks create with its first rows."""

    kind = "LanceDB table"

    def __init__(self, client: Any, name: str) -> None:
        super().__init__(client, name)
        self._table = f"emberd_identity_{name}"
        self.leftover = _leftover(f"the table {self._table}")

    def read(self) -> str | None:
        table = self._open(self._table)
        return None if table is None else str(table.to_arrow()["identity"][0].as_py())

    def _write(self, identity: str) -> None:
        self._client.create_table(self._table, [{"identity": identity}], mode="overwrite")

    def exists(self) -> bool:
        return self._open(self.name) is not None

    def is_empty(self) -> bool:
        return bool(self._open(self.name).count_rows() == 0)

    def _open(self, table: str) -> Any:
        try:
            return self._client.open_table(table)
        except (FileNotFoundError, ValueError):  # which of them depends on the version
            return None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


class _PostgresPlace(_ClientPlace):
    """A table of PostgreSQL; the client is a synchronous engine of SQLAlchemy."""

    kind = "PostgreSQL table"

    def read(self) -> str | None:
        with self._client.connect() as connection:
            _, identity = self._comment(connection)
        return identity

    def _write(self, identity: str) -> None:
        with self._client.begin() as connection:
            self._comment_on(connection, identity)

    def claim(self, identity: str) -> str:
        """Store ``identity`` unless there is one, on whichever machine it was stored."""
        self._require()
        with self._client.begin() as connection:
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('emberd identity'))")
            if self._comment(connection)[1] is None:
                self._comment_on(connection, identity)
        return self.require_kept()

    def exists(self) -> bool:
        with self._client.connect() as connection:
            return self._ask(connection, "to_regclass(:table)") is not None

    def is_empty(self) -> bool:
        with self._client.connect() as connection:
            rows = connection.execute(self._sql(f"SELECT 1 FROM {self._quoted} LIMIT 1"))  # noqa: S608
            return rows.first() is None

    def _comment(self, connection: Any) -> tuple[list[str], str | None]:
        """Return the lines of the user's own comment, and the identity in the line after them."""
        found = self._ask(connection, "obj_description(to_regclass(:table), 'pg_class')") or ""
        own = [line for line in found.split("\n") if not _SAVED.fullmatch(line)]
        identities = [line for line in found.split("\n") if _SAVED.fullmatch(line)]
        return own, identities[-1] if identities else None

    def _comment_on(self, connection: Any, identity: str) -> None:
        own, _ = self._comment(connection)
        whole = "\n".join([*(own if any(own) else []), identity])
        # A comment takes no parameters.
        literal = whole.replace("'", "''")
        connection.execute(self._sql(f"COMMENT ON TABLE {self._quoted} IS '{literal}'"))

    def _ask(self, connection: Any, asked: str) -> Any:
        from sqlalchemy import text

        return connection.execute(text(f"SELECT {asked}"), {"table": self._quoted}).scalar()

    def _sql(self, statement: str) -> Any:
        from sqlalchemy import text

        return text(statement.replace(":", "\\:"))

    @property
    def _quoted(self) -> str:
        return ".".join(map(_quoted, self.name.split(".")))


class _SqlitePlace(_ClientPlace):
    """A table of SQLite; the client is a connection.

    The identity is the text of a trigger, because SQLite drops and renames triggers with the table.
    """

    kind = "SQLite table"

    def read(self) -> str | None:
        _, statement = self._trigger()
        found = re.search(r"'(emberd:[^']*)'", statement)
        return str(found[1]) if found else None

    def _write(self, identity: str) -> None:
        self._require()
        if (self._definition() or "").upper().startswith("CREATE VIRTUAL"):
            raise SettingError(
                f"{self.title} is a virtual table, which cannot keep an identity. Pass the name of "
                f"the table that has the texts."
            )
        old, _ = self._trigger()
        self._client.execute(f"DROP TRIGGER IF EXISTS {_quoted(old)}")
        # Names of triggers are those of the whole database, and remain when a table is renamed.
        self._client.execute(
            f"CREATE TRIGGER {_quoted(_TRIGGER + secrets.token_hex(8))} "
            f"AFTER UPDATE ON {_quoted(self.name)} WHEN 0 BEGIN SELECT '{identity}'; END"
        )

    @contextmanager
    def _claiming(self) -> Iterator[None]:
        if self._client.in_transaction:  # the user's own
            yield
            return
        self._client.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._client.execute("COMMIT")
        finally:
            if self._client.in_transaction:
                self._client.execute("ROLLBACK")

    def exists(self) -> bool:
        return self._definition() is not None

    def is_empty(self) -> bool:
        asked = f"SELECT 1 FROM {_quoted(self.name)} LIMIT 1"  # noqa: S608
        return self._client.execute(asked).fetchone() is None

    def _trigger(self) -> tuple[str, str]:
        """Return the name and the statement of the trigger; both are empty if there is none."""
        asked = (
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ? "
            "AND substr(name, 1, ?) = ?"
        )
        row = self._client.execute(asked, [self.name, len(_TRIGGER), _TRIGGER]).fetchone()
        name, statement = row or ("", "")
        return str(name), str(statement)

    def _definition(self) -> str | None:
        asked = "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?"
        row = self._client.execute(asked, [self.name]).fetchone()
        return None if row is None else str(row[0])


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
        is_usable = not type(client).__name__.startswith(("Async", "Collection"))
        if found and name and is_usable:
            return found(client, name)
    raise SettingError(
        f"It is unknown where {type(store).__name__} keeps its index. Pass at=(client, name), with "
        f"a synchronous client of chromadb, qdrant_client, pymilvus or lancedb, a synchronous "
        f"engine of SQLAlchemy or a connection of sqlite3, and the name of the collection or "
        f"table; or at=PATH, the path to which the index is saved."
    )

"""What the stores of both frameworks have in common."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import chromadb
import lancedb
from milvus_lite.server_manager import server_manager_instance
from pymilvus import MilvusClient
from qdrant_client import QdrantClient

from stores.postgres import Database

LONG: Final = 128
SHORT: Final = 64

NAME: Final = "passages"
KEY: Final = "emberd"  # the metadata key or table name of the identity


@dataclass(frozen=True)
class Refusal:
    """The error that a store raises for a vector of another length, and its message's pattern."""

    error: type[Exception]
    pattern: str


class Store:
    """A store in its own folder or database.

    ``refuses_query`` and ``refuses_texts`` are the errors for vectors of SHORT dimensions in a
    store of LONG ones; None if the store accepts them without an error.
    """

    name: ClassVar[str]
    refuses_query: ClassVar[Refusal]
    refuses_texts: ClassVar[Refusal | None]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.closing = ExitStack()

    def close(self) -> None:
        """Close clients and connections, so that the next ``open`` reads what was written."""
        self.closing.close()

    def save_identity(self, identity: str) -> None:
        (self.folder / "identity.txt").write_text(identity)

    def load_identity(self) -> str:
        return (self.folder / "identity.txt").read_text()


class ChromaFolder(Store):
    """Stores the identity as metadata of the collection."""

    refuses_query = refuses_texts = Refusal(
        chromadb.errors.InvalidArgumentError,
        "Collection expecting embedding with dimension of 128, got 64",
    )

    def client(self) -> Any:
        client = chromadb.PersistentClient(self.folder)
        self.closing.callback(client.close)
        return client

    def save_identity(self, identity: str) -> None:
        """Do nothing: the collection is created with the identity."""

    def load_identity(self) -> str:
        return str(self.client().get_collection(NAME).metadata[KEY])


class QdrantFolder(Store):
    """Stores the identity as metadata of the collection."""

    def client(self) -> QdrantClient:
        client = QdrantClient(path=str(self.folder))
        self.closing.callback(client.close)
        return client

    def save_identity(self, identity: str) -> None:
        self.close()
        self.client().update_collection(NAME, metadata={KEY: identity})

    def load_identity(self) -> str:
        return str((self.client().get_collection(NAME).config.metadata or {})[KEY])


class MilvusFile(Store):
    """Stores the identity as a property of the collection."""

    def uri(self) -> str:
        path = str(self.folder / "milvus.db")
        # Milvus Lite serves a file from this process until the server is released.
        self.closing.callback(server_manager_instance.release_server, path)
        return path

    def client(self) -> MilvusClient:
        client = MilvusClient(self.uri())
        self.closing.callback(client.close)
        return client

    def save_identity(self, identity: str) -> None:
        self.close()
        self.client().alter_collection_properties(NAME, {KEY: identity})

    def load_identity(self) -> str:
        return str(self.client().describe_collection(NAME)["properties"][KEY])


class LanceFolder(Store):
    """Stores the identity in a separate table."""

    def save_identity(self, identity: str) -> None:
        lancedb.connect(self.folder).create_table(KEY, [{"identity": identity}])

    def load_identity(self) -> str:
        (row,) = lancedb.connect(self.folder).open_table(KEY).to_arrow().to_pylist()
        return str(row["identity"])


class InPostgres(Store):
    """Stores the identity as the comment of its table."""

    table: ClassVar[str]

    def __init__(self, folder: Path, database: Database) -> None:
        super().__init__(folder)
        self.database = database

    def save_identity(self, identity: str) -> None:
        self.database.ask(f"COMMENT ON TABLE {self.table} IS '{identity}'")

    def load_identity(self) -> str:
        ((comment,),) = self.database.ask(f"SELECT obj_description('{self.table}'::regclass)")
        return str(comment)

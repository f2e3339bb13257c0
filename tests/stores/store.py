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
KEY: Final = "emberd"  # what an identity is kept under, where there are names


@dataclass(frozen=True)
class Refusal:
    """How a store refuses a vector of another length: the error, and words of its message."""

    error: type[Exception]
    words: str


class Store:
    """One store in a folder or a database of its own.

    ``refuses_query`` and ``refuses_texts`` say what vectors of SHORT dimensions get, where those
    in it have LONG; None where they are taken without a word.
    """

    name: ClassVar[str]
    refuses_query: ClassVar[Refusal]
    refuses_texts: ClassVar[Refusal | None]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.closing = ExitStack()

    def close(self) -> None:
        """Let go of everything, so that what is opened next reads what was written."""
        self.closing.close()

    def keep(self, identity: str) -> None:
        (self.folder / "identity.txt").write_text(identity)

    def kept(self) -> str:
        return (self.folder / "identity.txt").read_text()


class ChromaFolder(Store):
    """Keeps the identity as metadata of the collection."""

    refuses_query = refuses_texts = Refusal(
        chromadb.errors.InvalidArgumentError,
        "Collection expecting embedding with dimension of 128, got 64",
    )

    def client(self) -> Any:
        client = chromadb.PersistentClient(self.folder)
        self.closing.callback(client.close)
        return client

    def keep(self, identity: str) -> None:
        """Nothing is left to do: it is given where the collection is made."""

    def kept(self) -> str:
        return str(self.client().get_collection(NAME).metadata[KEY])


class QdrantFolder(Store):
    """Keeps the identity as metadata of the collection."""

    def client(self) -> QdrantClient:
        client = QdrantClient(path=str(self.folder))
        self.closing.callback(client.close)
        return client

    def keep(self, identity: str) -> None:
        self.close()
        self.client().update_collection(NAME, metadata={KEY: identity})

    def kept(self) -> str:
        return str((self.client().get_collection(NAME).config.metadata or {})[KEY])


class MilvusFile(Store):
    """Keeps the identity as a property of the collection."""

    def uri(self) -> str:
        path = str(self.folder / "milvus.db")
        # Lite serves a file from this process for as long as it is not told to let go.
        self.closing.callback(server_manager_instance.release_server, path)
        return path

    def client(self) -> MilvusClient:
        client = MilvusClient(self.uri())
        self.closing.callback(client.close)
        return client

    def keep(self, identity: str) -> None:
        self.close()
        self.client().alter_collection_properties(NAME, {KEY: identity})

    def kept(self) -> str:
        return str(self.client().describe_collection(NAME)["properties"][KEY])


class LanceFolder(Store):
    """Keeps the identity in a table of its own."""

    def keep(self, identity: str) -> None:
        lancedb.connect(self.folder).create_table(KEY, [{"identity": identity}])

    def kept(self) -> str:
        (row,) = lancedb.connect(self.folder).open_table(KEY).to_arrow().to_pylist()
        return str(row["identity"])


class InPostgres(Store):
    """Keeps the identity as the comment of its table."""

    table: ClassVar[str]

    def __init__(self, folder: Path, database: Database) -> None:
        super().__init__(folder)
        self.database = database

    def keep(self, identity: str) -> None:
        self.database.ask(f"COMMENT ON TABLE {self.table} IS '{identity}'")

    def kept(self) -> str:
        ((comment,),) = self.database.ask(f"SELECT obj_description('{self.table}'::regclass)")
        return str(comment)

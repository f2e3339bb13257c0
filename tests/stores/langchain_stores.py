"""The vector stores of LangChain, each created and reopened as its users do."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Final

import pysqlite3
import sqlalchemy
import sqlite_vec
from langchain_chroma import Chroma
from langchain_community.vectorstores import FAISS, Annoy, SQLiteVec
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_lancedb import LanceDB
from langchain_milvus import Milvus
from langchain_postgres import PGEngine, PGVector, PGVectorStore
from langchain_qdrant import QdrantVectorStore
from langchain_qdrant.qdrant import QdrantVectorStoreError
from pymilvus.exceptions import MilvusException
from qdrant_client.models import Distance, VectorParams

from langchain_emberd import EmberdEmbeddings
from managed import PASSAGES
from stores.postgres import Database
from stores.store import (
    KEY,
    LONG,
    NAME,
    ChromaFolder,
    InPostgres,
    LanceFolder,
    MilvusFile,
    QdrantFolder,
    Refusal,
    Store,
)

TEXTS: Final = list(PASSAGES.values())
NAMES: Final = [{"name": name} for name in PASSAGES]


class LangChainStore(Store):
    """A store that the same call creates or opens."""

    def fill(self, embeddings: EmberdEmbeddings) -> VectorStore:
        store = self.open(embeddings)
        store.add_texts(TEXTS, metadatas=NAMES)
        return store

    @abstractmethod
    def open(self, embeddings: EmberdEmbeddings) -> VectorStore: ...


class InMemory(LangChainStore):
    name = "in-memory"
    refuses_query = Refusal(ValueError, "Number of columns in X and Y must be the same")
    refuses_texts = None

    def fill(self, embeddings: EmberdEmbeddings) -> Any:
        store = InMemoryVectorStore.from_texts(TEXTS, embeddings, metadatas=NAMES)
        store.dump(str(self.folder / "store.json"))
        return store

    def open(self, embeddings: EmberdEmbeddings) -> Any:
        return InMemoryVectorStore.load(str(self.folder / "store.json"), embeddings)


class Faiss(LangChainStore):
    name = "faiss"
    refuses_query = refuses_texts = Refusal(AssertionError, "^$")

    def fill(self, embeddings: EmberdEmbeddings) -> Any:
        store = FAISS.from_texts(TEXTS, embeddings, metadatas=NAMES)
        store.save_local(str(self.folder))
        return store

    def open(self, embeddings: EmberdEmbeddings) -> Any:
        return FAISS.load_local(str(self.folder), embeddings, allow_dangerous_deserialization=True)


class AnnoyFolder(LangChainStore):
    name = "annoy"
    refuses_query = Refusal(IndexError, r"Vector has wrong length \(expected 128, got 64\)")
    refuses_texts = Refusal(NotImplementedError, "does not allow to add new data once the index")

    def fill(self, embeddings: EmberdEmbeddings) -> Any:
        store = Annoy.from_texts(TEXTS, embeddings, metadatas=NAMES, metric="angular")
        store.save_local(str(self.folder))
        return store

    def open(self, embeddings: EmberdEmbeddings) -> Any:
        return Annoy.load_local(str(self.folder), embeddings, allow_dangerous_deserialization=True)


class InChroma(LangChainStore, ChromaFolder):
    name = "chroma"

    def open(self, embeddings: EmberdEmbeddings) -> Any:
        return Chroma(
            NAME,
            embeddings,
            client=self.client(),
            collection_metadata={KEY: embeddings.identity},
            collection_configuration={"hnsw": {"space": "cosine"}},
        )


class InQdrant(LangChainStore, QdrantFolder):
    """Checks the dimensions when it is opened, unless ``validates`` is false."""

    name = "qdrant"
    refuses_query = refuses_texts = Refusal(
        QdrantVectorStoreError,
        "configured for dense vectors with 128 dimensions. Selected embeddings are 64-dimensional",
    )
    validates: ClassVar[bool] = True

    def open(self, embeddings: EmberdEmbeddings) -> Any:
        client = self.client()
        if not client.collection_exists(NAME):
            parameters = VectorParams(size=LONG, distance=Distance.COSINE)
            client.create_collection(NAME, vectors_config=parameters)
        return QdrantVectorStore(
            client, NAME, embeddings, validate_collection_config=self.validates
        )


class InQdrantUnvalidated(InQdrant):
    name = "qdrant-without-validation"
    refuses_query = Refusal(ValueError, r"shapes \(4,128\) and \(64,\) not aligned")
    refuses_texts = Refusal(ValueError, "Vector dimension error: expected dim: 128, got 64")
    validates = False


class InMilvus(LangChainStore, MilvusFile):
    name = "milvus-lite"
    # The rest of the message depends on the index: empty, or the shapes of two matrices.
    refuses_query = Refusal(MilvusException, "code=1, message=")
    refuses_texts = Refusal(MilvusException, "vector field 'vector' expected dim 128, got 64")

    def open(self, embeddings: EmberdEmbeddings) -> Any:
        store = Milvus(
            embeddings,
            collection_name=NAME,
            connection_args={"uri": self.uri()},
            index_params={"index_type": "AUTOINDEX", "metric_type": "COSINE"},
            auto_id=True,
        )
        self.closing.callback(store.client.close)
        return store


class InLance(LangChainStore, LanceFolder):
    name = "lancedb"
    refuses_query = Refusal(ValueError, "There is no vector column in the data")
    refuses_texts = Refusal(ValueError, "value at index 0 has length 64")

    def open(self, embeddings: EmberdEmbeddings) -> Any:
        return LanceDB(embeddings, uri=self.folder, table_name=NAME)


class InSqliteVec(LangChainStore):
    """Stores the identity in a table of the same file."""

    name = "sqlite-vec"
    refuses_query = refuses_texts = Refusal(
        pysqlite3.OperationalError, "Expected 128 dimensions but received 64"
    )

    def connection(self) -> Any:
        # Many builds of Python have a sqlite3 module that cannot load extensions.
        connection = pysqlite3.connect(str(self.folder / "vectors.db"))
        self.closing.callback(connection.close)
        connection.row_factory = pysqlite3.Row
        connection.enable_load_extension(True)
        sqlite_vec.load(connection)
        connection.enable_load_extension(False)
        return connection

    def open(self, embeddings: EmberdEmbeddings) -> Any:
        return SQLiteVec(NAME, self.connection(), embeddings)

    def save_identity(self, identity: str) -> None:
        connection = self.connection()
        with connection:
            connection.execute(f"CREATE TABLE {KEY} (identity TEXT)")
            connection.execute(f"INSERT INTO {KEY} VALUES (?)", [identity])

    def load_identity(self) -> str:
        (row,) = self.connection().execute(f"SELECT identity FROM {KEY}")
        return str(row["identity"])


class InPgVector(LangChainStore, InPostgres):
    """Stores the identity as metadata of the collection."""

    name = "pgvector"
    refuses_query = refuses_texts = Refusal(
        sqlalchemy.exc.StatementError, "expected 128 dimensions, not 64"
    )

    def open(self, embeddings: EmberdEmbeddings) -> Any:
        engine = sqlalchemy.create_engine(self.database.url("psycopg"))
        self.closing.callback(engine.dispose)
        return PGVector(
            embeddings,
            connection=engine,
            embedding_length=LONG,
            collection_name=NAME,
            collection_metadata={KEY: embeddings.identity},
        )

    def save_identity(self, identity: str) -> None:
        """Do nothing: the collection is created with the identity."""

    def load_identity(self) -> str:
        query = f"SELECT cmetadata ->> '{KEY}' FROM langchain_pg_collection WHERE name = '{NAME}'"
        ((identity,),) = self.database.ask(query)
        return str(identity)


class InPgVectorStore(LangChainStore, InPostgres):
    name = "pgvector-table"
    table = NAME
    refuses_query = Refusal(sqlalchemy.exc.DBAPIError, "different vector dimensions 128 and 64")
    refuses_texts = Refusal(sqlalchemy.exc.DBAPIError, "expected 128 dimensions, not 64")

    def __init__(self, folder: Path, database: Database) -> None:
        super().__init__(folder, database)
        self.has_table = False

    def engine(self) -> PGEngine:
        engine = PGEngine.from_connection_string(self.database.url("asyncpg"))
        self.closing.callback(lambda: asyncio.run(engine.close()))
        return engine

    def open(self, embeddings: EmberdEmbeddings) -> Any:
        engine = self.engine()
        if not self.has_table:
            engine.init_vectorstore_table(NAME, LONG)
            self.has_table = True
        return PGVectorStore.create_sync(engine, embeddings, NAME)


STORES: Final[list[type[LangChainStore]]] = [
    InMemory,
    Faiss,
    AnnoyFolder,
    InChroma,
    InQdrant,
    InQdrantUnvalidated,
    InMilvus,
    InLance,
    InSqliteVec,
    InPgVector,
    InPgVectorStore,
]

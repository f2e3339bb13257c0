"""The vector stores of LlamaIndex, each created and reopened as its users do."""

from __future__ import annotations

import uuid
from abc import abstractmethod
from typing import Any, ClassVar, Final

import faiss
import sqlalchemy
from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import BasePydanticVectorStore
from llama_index.vector_stores.chroma import ChromaVectorStore
from llama_index.vector_stores.faiss import FaissVectorStore
from llama_index.vector_stores.lancedb import LanceDBVectorStore
from llama_index.vector_stores.milvus import MilvusVectorStore
from llama_index.vector_stores.postgres import PGVectorStore
from llama_index.vector_stores.qdrant import QdrantVectorStore
from pymilvus.exceptions import MilvusException
from sqlalchemy.ext.asyncio import create_async_engine

from llama_index.embeddings.emberd import EmberdEmbedding
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

# Qdrant accepts only UUIDs as string ids.
NAME_OF: Final = {str(uuid.uuid5(uuid.NAMESPACE_OID, name)): name for name in PASSAGES}

HNSW: Final = {"hnsw_m": 16, "hnsw_ef_construction": 64, "hnsw_ef_search": 40}


def nodes() -> list[TextNode]:
    return [TextNode(id_=id_, text=PASSAGES[name]) for id_, name in NAME_OF.items()]


class LlamaIndexStore(Store):
    """A store that holds both texts and vectors."""

    def fill(self, embed_model: EmberdEmbedding) -> VectorStoreIndex:
        context = StorageContext.from_defaults(vector_store=self.store(embed_model))
        return VectorStoreIndex(nodes(), storage_context=context, embed_model=embed_model)

    def open(self, embed_model: EmberdEmbedding) -> VectorStoreIndex:
        store = self.store(embed_model)
        return VectorStoreIndex.from_vector_store(store, embed_model=embed_model)

    @abstractmethod
    def store(self, embed_model: EmberdEmbedding) -> BasePydanticVectorStore: ...


class Persisted(LlamaIndexStore):
    """A store that holds only vectors, and is written by an explicit ``persist``."""

    kind: ClassVar[Any]

    def fill(self, embed_model: EmberdEmbedding) -> VectorStoreIndex:
        index = super().fill(embed_model)
        index.storage_context.persist(str(self.folder))
        return index

    def open(self, embed_model: EmberdEmbedding) -> VectorStoreIndex:
        folder = str(self.folder)
        store = self.kind.from_persist_dir(folder)
        context = StorageContext.from_defaults(vector_store=store, persist_dir=folder)
        index = load_index_from_storage(context, embed_model=embed_model)
        assert isinstance(index, VectorStoreIndex)
        return index


class Simple(Persisted):
    name = "simple"
    kind = SimpleVectorStore
    refuses_query = Refusal(ValueError, r"shapes \(64,\) and \(128,\) not aligned")
    refuses_texts = None

    def store(self, embed_model: EmberdEmbedding) -> Any:
        return SimpleVectorStore()


class Faiss(Persisted):
    name = "faiss"
    kind = FaissVectorStore
    refuses_query = refuses_texts = Refusal(AssertionError, "^$")

    def store(self, embed_model: EmberdEmbedding) -> Any:
        return FaissVectorStore(faiss.IndexFlatIP(LONG))


class InChroma(LlamaIndexStore, ChromaFolder):
    name = "chroma"

    def store(self, embed_model: EmberdEmbedding) -> Any:
        collection = self.client().get_or_create_collection(
            NAME,
            metadata={KEY: embed_model.identity},
            configuration={"hnsw": {"space": "cosine"}},
            embedding_function=None,
        )
        return ChromaVectorStore(collection)


class InQdrant(LlamaIndexStore, QdrantFolder):
    name = "qdrant"
    refuses_query = Refusal(ValueError, r"shapes \(4,128\) and \(64,\) not aligned")
    refuses_texts = Refusal(ValueError, "Vector dimension error: expected dim: 128, got 64")

    def store(self, embed_model: EmberdEmbedding) -> Any:
        return QdrantVectorStore(NAME, client=self.client())


class InMilvus(LlamaIndexStore, MilvusFile):
    name = "milvus-lite"
    refuses_query = Refusal(MilvusException, r"\(size 128 is different from 64\)")
    refuses_texts = Refusal(MilvusException, "vector field 'embedding' expected dim 128, got 64")

    def store(self, embed_model: EmberdEmbedding) -> Any:
        store = MilvusVectorStore(
            self.uri(),
            collection_name=NAME,
            dim=LONG,
            similarity_metric="COSINE",
            use_async_client=False,
        )
        self.closing.callback(store.client.close)
        return store

    def open(self, embed_model: EmberdEmbedding) -> VectorStoreIndex:
        store = self.store(embed_model)
        store.client.load_collection(NAME)  # Milvus Lite requires it before a query
        return VectorStoreIndex.from_vector_store(store, embed_model=embed_model)


class InLance(LlamaIndexStore, LanceFolder):
    name = "lancedb"
    refuses_query = Refusal(ValueError, r"query dim\(64\) doesn't match the column")
    refuses_texts = Refusal(ValueError, "value at index 0 has length 64")

    def store(self, embed_model: EmberdEmbedding) -> Any:
        return LanceDBVectorStore(str(self.folder), table_name=NAME)


class InPgVector(LlamaIndexStore, InPostgres):
    name = "pgvector"
    table = f"data_{NAME}"
    refuses_query = refuses_texts = Refusal(
        sqlalchemy.exc.StatementError, "expected 128 dimensions, not 64"
    )

    def store(self, embed_model: EmberdEmbedding) -> Any:
        return pgvector(self, self.database)


def pgvector(closed_by: Store, database: Database, dimensions: int = LONG, **options: Any) -> Any:
    """Return the store; ``from_params`` has no option to fail when the index cannot be created."""
    engine = sqlalchemy.create_engine(database.url("psycopg2"))
    closed_by.closing.callback(engine.dispose)
    settings = {"hnsw_kwargs": HNSW, "initialization_fail_on_error": True, **options}
    return PGVectorStore(
        table_name=NAME,
        embed_dim=dimensions,
        engine=engine,
        async_engine=create_async_engine(database.url("asyncpg")),
        **settings,
    )


STORES: Final[list[type[LlamaIndexStore]]] = [
    Simple,
    Faiss,
    InChroma,
    InQdrant,
    InMilvus,
    InLance,
    InPgVector,
]

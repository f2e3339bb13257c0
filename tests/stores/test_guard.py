"""``guarded``: an index is opened only with what made it."""

from __future__ import annotations

from typing import Any, Final

import lancedb
import pytest
import sqlalchemy

import emberd
from langchain_emberd import EmberdEmbeddings, guarded
from llama_index.embeddings.emberd import EmberdEmbedding
from managed import MODEL, QUERIES
from stores import langchain_stores, llama_index_stores
from stores.langchain_stores import LangChainStore
from stores.llama_index_stores import LlamaIndexStore
from stores.store import LONG, NAME, SHORT, InPostgres, Store
from stores.test_langchain import found_in

# These objects hold nothing to guard before their first text, or the same store is there twice.
_SKIPPED: Final = {"qdrant-without-validation"}


def embeddings_of(dimensions: int) -> EmberdEmbeddings:
    return EmberdEmbeddings(model=MODEL, dimensions=dimensions)


def place_of(store: Store) -> Any:
    """Return what a user passes as ``at``; None if the object itself says where its index is."""
    match store.name:
        case "in-memory":
            return store.folder / "store.json"
        case "faiss" | "annoy" | "simple":
            return store.folder
        case "chroma":
            return store.client(), NAME  # type: ignore[attr-defined]
        case "lancedb":
            return lancedb.connect(store.folder), NAME
        case "sqlite-vec":
            return store.connection(), NAME  # type: ignore[attr-defined]
        case "pgvector" | "pgvector-table":
            assert isinstance(store, InPostgres)
            engine = sqlalchemy.create_engine(store.database.url("psycopg"))
            store.closing.callback(engine.dispose)
            table = (
                "langchain_pg_embedding"
                if isinstance(store, langchain_stores.InPgVector)
                else store.table
            )
            return engine, table
    return None


def prepared(store: Store) -> None:
    """Do what makes the identity of a test before it is guarded undone."""
    if store.name == "chroma":
        store.client().get_or_create_collection(NAME, embedding_function=None)  # type: ignore[attr-defined]


langchain = pytest.mark.parametrize(
    "store",
    [kind for kind in langchain_stores.STORES if kind.name not in _SKIPPED],
    indirect=True,
    ids=lambda kind: str(kind.name),
)
llama_index = pytest.mark.parametrize(
    "store", llama_index_stores.STORES, indirect=True, ids=lambda kind: str(kind.name)
)


@langchain
def test_langchain_filled_without_identity_is_refused_adopted_and_guarded(
    store: LangChainStore,
) -> None:
    prepared(store)
    embeddings = embeddings_of(LONG)
    store.fill(embeddings)
    store.close()
    with pytest.raises(emberd.IdentityError, match="adopt=True"):
        guarded(store.open(embeddings), embeddings, at=place_of(store))
    store.close()
    opened = store.open(embeddings)
    assert guarded(opened, embeddings, at=place_of(store), adopt=True) is opened
    assert found_in(guarded(opened, embeddings, at=place_of(store))) == QUERIES
    other = embeddings_of(SHORT)
    with pytest.raises(emberd.IdentityError, match="dimensions 128 there, 64 here"):
        guarded(opened, other, at=place_of(store), adopt=True)


@llama_index
def test_llama_index_filled_without_identity_is_refused_adopted_and_guarded(
    store: LlamaIndexStore,
) -> None:
    prepared(store)
    embed_model = EmberdEmbedding(model_name=MODEL, dimensions=LONG)
    store.fill(embed_model)
    store.close()
    index = store.open(embed_model)
    with pytest.raises(emberd.IdentityError, match="adopt=True"):
        guarded(index, embed_model, at=place_of(store))
    assert guarded(index, embed_model, at=place_of(store), adopt=True) is index
    guarded(index.vector_store, embed_model, at=place_of(store))
    other = EmberdEmbedding(model_name=MODEL, dimensions=SHORT)
    with pytest.raises(emberd.IdentityError, match="dimensions 128 there, 64 here"):
        guarded(index, other, at=place_of(store))

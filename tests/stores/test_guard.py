"""``guarded``: an index is opened only with what made it."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import chromadb
import lancedb
import pytest
import sqlalchemy
from langchain_milvus import Milvus
from qdrant_client import AsyncQdrantClient, QdrantClient
from qdrant_client.models import Distance, VectorParams
from sqlalchemy.ext.asyncio import create_async_engine

import emberd
import guard_race
from emberd.stores import places
from langchain_emberd import EmberdEmbeddings, guarded
from llama_index.embeddings.emberd import EmberdEmbedding
from managed import MODEL, QUERIES
from stores import langchain_stores, llama_index_stores
from stores.langchain_stores import LangChainStore
from stores.llama_index_stores import LlamaIndexStore
from stores.postgres import Database
from stores.store import LONG, NAME, SHORT, InPostgres, Store
from stores.test_langchain import found_in

# The same store as another of the list.
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
    """Create the collection of Chroma without an identity, which the objects of the tests add."""
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
    names = ("client", "collection_name")
    bare = SimpleNamespace(**{name: getattr(opened, name, None) for name in names})
    with pytest.raises(emberd.IdentityError, match="dimensions 128 there, 64 here"):
        guarded(bare, other, at=place_of(store), adopt=True)
    # Most stores show what embeds for them, which is compared too.
    with pytest.raises(emberd.IdentityError, match="dimensions 128 there, 64 here"):
        guarded(opened, other, at=place_of(store))


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


@pytest.mark.parametrize("kind", ["chromadb", "lancedb"])
def test_of_two_processes_that_create_an_index_one_stores_its_identity(
    kind: str, tmp_path: Path
) -> None:
    if kind == "chromadb":
        client = chromadb.PersistentClient(tmp_path)
        for number in range(guard_race.ROUNDS):
            client.create_collection(f"index-{number}", embedding_function=None)
    assert guard_race.outcomes(kind, tmp_path) == [["refused", "stored"]] * guard_race.ROUNDS


def test_an_empty_collection_gets_the_identity_and_keeps_its_other_metadata(tmp_path: Path) -> None:
    embeddings = embeddings_of(LONG)
    client = chromadb.PersistentClient(tmp_path)
    mine = {"hnsw:space": "cosine", "mine": 1}
    made = client.create_collection(NAME, metadata=mine, embedding_function=None)
    guarded(None, embeddings, at=(client, NAME))
    found = client.get_collection(NAME)
    assert found.metadata == {"mine": 1, "emberd": embeddings.identity}
    assert found.configuration == made.configuration
    with pytest.raises(emberd.SettingError, match="at=\\(client, name\\)"):
        guarded(None, embeddings, at=(found, NAME))
    with pytest.raises(emberd.SettingError, match="does not exist yet"):
        guarded(None, embeddings, at=(client, "missing"))


@pytest.mark.parametrize("table", ["passages", "pas'sa\"ges: 5%"])
def test_the_comment_of_a_table_of_postgresql_is_kept(database: Database, table: str) -> None:
    engine = sqlalchemy.create_engine(database.url("psycopg"))
    quoted = '"' + table.replace('"', '""') + '"'
    mine = "Mine: 100% 'quoted', \\:escaped\nand a second line"
    literal = mine.replace("'", "''")
    for statement in (
        f"CREATE TABLE {quoted} (id int)",
        f"COMMENT ON TABLE {quoted} IS '{literal}'",
    ):
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text(statement.replace(":", "\\:")))
    at = engine, table
    embeddings = embeddings_of(LONG)
    for _ in range(2):
        guarded(None, embeddings, at=at)
    with engine.connect() as connection:
        asked = sqlalchemy.text("SELECT obj_description(cast(:oid AS regclass))")
        comment = connection.execute(asked, {"oid": quoted}).scalar()
    engine.dispose()
    assert comment == f"{mine}\n{embeddings.identity}"


def test_the_identity_of_a_table_of_lancedb_stays_until_it_is_deleted_too(tmp_path: Path) -> None:
    database = lancedb.connect(tmp_path)
    embeddings, other = embeddings_of(LONG), embeddings_of(SHORT)
    row = {"id": "1", "vector": [0.0] * LONG}

    def refused() -> None:
        guarded(None, embeddings, at=(database, NAME))
        with pytest.raises(emberd.IdentityError, match="was deleted, delete the table emberd_iden"):
            guarded(None, other, at=(database, NAME))

    refused()
    table = database.create_table(NAME, [row])
    refused()
    table.delete("true")
    refused()
    table.add([row])
    refused()
    database.drop_table(NAME)
    refused()
    database.drop_table(f"emberd_identity_{NAME}")
    guarded(None, other, at=(database, NAME))


def test_asynchronous_clients_are_refused(tmp_path: Path) -> None:
    engine = create_async_engine("postgresql+psycopg://localhost")
    database = asyncio.run(lancedb.connect_async(tmp_path))
    for client in (AsyncQdrantClient(":memory:"), engine, database):
        with pytest.raises(emberd.SettingError, match="synchronous client"):
            guarded(None, embeddings_of(LONG), at=(client, NAME))


def test_an_identity_that_a_store_does_not_replace_is_an_error(tmp_path: Path) -> None:
    with closing(QdrantClient(path=str(tmp_path))) as client:
        vectors = VectorParams(size=LONG, distance=Distance.COSINE)
        client.create_collection(NAME, vectors)
        place = places.find(None, (client, NAME))
        place.write("emberd:first")
        client.update_collection = lambda *_, **__: True
        with pytest.raises(emberd.EmberdError, match="did not keep"):
            place.write("emberd:second")


@pytest.mark.parametrize("store", [langchain_stores.InMilvus], indirect=True)
def test_milvus_creates_a_collection_with_its_identity(store: langchain_stores.InMilvus) -> None:
    embeddings = embeddings_of(LONG)
    made = Milvus(
        embeddings,
        collection_name=NAME,
        connection_args={"uri": store.uri()},
        index_params={"index_type": "AUTOINDEX", "metric_type": "COSINE"},
        auto_id=True,
        collection_properties={"emberd": embeddings.identity},
    )
    store.closing.callback(made.client.close)
    with pytest.raises(emberd.SettingError, match="does not exist yet"):
        guarded(made, embeddings)
    made.add_texts(["a text"])
    assert guarded(made, embeddings) is made

"""PostgreSQL's own limits: an index of ``vector`` takes 2,000 dimensions, one of ``halfvec`` 4,000.

The vectors come from a server that answers as one of Qwen3-Embedding does: their lengths are what
is tried here, and the demo's model has not as many.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Final

import pytest
import sqlalchemy
from langchain_postgres import PGVector, PGVectorStore
from langchain_postgres.v2.indexes import HNSWIndex
from llama_index.core import StorageContext, VectorStoreIndex

import managed
from fake_server import QWEN, FakeServer
from langchain_emberd import EmberdEmbeddings
from llama_index.embeddings.emberd import EmberdEmbedding
from managed import PASSAGES
from stores.langchain_stores import NAMES, TEXTS, InPgVector, InPgVectorStore
from stores.llama_index_stores import NAME_OF, nodes, pgvector
from stores.llama_index_stores import InPgVector as InLlamaIndex
from stores.postgres import Database
from stores.store import LONG, NAME, SHORT

NATIVE: Final = 2560
REFUSED: Final = "column cannot have more than 2000 dimensions for hnsw index"


@pytest.fixture(scope="module")
def qwen() -> Iterator[dict[str, Any]]:
    """What an embedding object needs to use the server; its vectors are cut where they arrive."""
    with FakeServer(model=QWEN.replace("0.6B", "4B"), dimensions=NATIVE) as server:
        yield {"base_url": server.url}


def way_to(database: Database, table: str, dimensions: int, kind: str = "vector") -> str:
    """Return how PostgreSQL would find the nearest vector, if it could not read the whole table."""
    vector = [1.0] * dimensions
    asked = f"SELECT 1 FROM {table} ORDER BY embedding <=> '{vector}'::{kind} LIMIT 1"
    database.ask(f"ALTER DATABASE {database.name} SET enable_seqscan = off")
    return "\n".join(line for (line,) in database.ask(f"EXPLAIN {asked}"))


# ---------------------------------------------------------------- LangChain


def table_of(store: InPgVectorStore, embeddings: EmberdEmbeddings, column: str = "") -> Any:
    """Make a table for these vectors, and return the store on it with the passages in it."""
    engine = store.engine()
    engine.init_vectorstore_table(NAME, embeddings.dimensions or NATIVE)
    if column:
        store.database.ask(f"ALTER TABLE {NAME} ALTER COLUMN embedding TYPE {column}")
    made = PGVectorStore.create_sync(engine, embeddings, NAME)
    made.add_texts(TEXTS, metadatas=NAMES)
    return made


@pytest.mark.parametrize("store", [InPgVectorStore], indirect=True, ids=["langchain"])
@pytest.mark.parametrize("dimensions", [1024, 2000])
def test_langchain_finds_by_an_index(
    store: InPgVectorStore, qwen: dict[str, Any], dimensions: int
) -> None:
    embeddings = EmberdEmbeddings(dimensions=dimensions, **qwen)
    made = table_of(store, embeddings)
    made.apply_vector_index(HNSWIndex())
    (hit,) = made.similarity_search_by_vector(embeddings.embed_documents([PASSAGES["sea"]])[0], k=1)
    assert hit.metadata == {"name": "sea"}
    assert "using passageslangchainvectorindex" in way_to(store.database, NAME, dimensions)


@pytest.mark.parametrize("store", [InPgVectorStore], indirect=True, ids=["langchain"])
def test_langchain_says_that_native_vectors_have_no_index(
    store: InPgVectorStore, qwen: dict[str, Any]
) -> None:
    made = table_of(store, EmberdEmbeddings(**qwen))
    with pytest.raises(sqlalchemy.exc.DBAPIError, match=REFUSED):
        made.apply_vector_index(HNSWIndex())


@pytest.mark.parametrize("store", [InPgVectorStore], indirect=True, ids=["langchain"])
def test_langchain_works_on_a_column_that_was_made_halfvec(
    store: InPgVectorStore, qwen: dict[str, Any]
) -> None:
    embeddings = EmberdEmbeddings(**qwen)
    made = table_of(store, embeddings, f"halfvec({NATIVE})")
    store.database.ask(f"CREATE INDEX half ON {NAME} USING hnsw (embedding halfvec_cosine_ops)")
    (hit,) = made.similarity_search_by_vector(embeddings.embed_documents([PASSAGES["sea"]])[0], k=1)
    assert hit.metadata == {"name": "sea"}
    assert "using half" in way_to(store.database, NAME, NATIVE, "halfvec")


@pytest.mark.parametrize("store", [InPgVector], indirect=True, ids=["langchain"])
def test_the_first_length_of_a_process_is_that_of_every_pgvector_object(store: InPgVector) -> None:
    store.fill(EmberdEmbeddings(model=managed.MODEL, dimensions=LONG))
    engine = sqlalchemy.create_engine(store.database.url("psycopg"))
    store.closing.callback(engine.dispose)
    short = EmberdEmbeddings(model=managed.MODEL, dimensions=SHORT)
    other = PGVector(short, connection=engine, embedding_length=SHORT, collection_name="other")
    with pytest.raises(sqlalchemy.exc.StatementError, match="expected 128 dimensions, not 64"):
        other.add_texts(["a text"])


_WITHOUT_A_LENGTH: Final = """
import sys
from langchain_emberd import EmberdEmbeddings
from langchain_postgres import PGVector

def store(dimensions):
    embeddings = EmberdEmbeddings(model="emberd/demo", dimensions=dimensions)
    return PGVector(embeddings, connection=sys.argv[1])

store(128).add_texts(["one"])
store(64).add_texts(["two"])
try:
    store(128).similarity_search("one")
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_pgvector_object_without_a_length_takes_any_and_breaks_at_the_next_query(
    database: Database,
) -> None:
    # In a separate process: the length that the others gave would count here too.
    ended = subprocess.run(
        [sys.executable, "-c", _WITHOUT_A_LENGTH, database.url("psycopg")],
        env=managed.environment(),
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("DataError (psycopg.errors.DataException) different vector")
    with pytest.raises(sqlalchemy.exc.DataError, match="column does not have dimensions"):
        database.ask("CREATE INDEX ON langchain_pg_embedding USING hnsw (embedding vector_ip_ops)")


# ---------------------------------------------------------------- LlamaIndex


def nearest(store: InLlamaIndex, embed_model: EmberdEmbedding, **settings: Any) -> str:
    """Make a store with the passages in it, and return which of them is nearest to one of them."""
    dimensions = embed_model.dimensions or NATIVE
    kept = pgvector(store, store.database, dimensions, **settings)
    context = StorageContext.from_defaults(vector_store=kept)
    index = VectorStoreIndex(nodes(), storage_context=context, embed_model=embed_model)
    (hit,) = index.as_retriever(similarity_top_k=1).retrieve(PASSAGES["sea"])
    return NAME_OF[hit.node.node_id]


llama_index = pytest.mark.parametrize("store", [InLlamaIndex], indirect=True, ids=["llama-index"])


def same_for_both_roles(qwen: dict[str, Any], **more: Any) -> EmberdEmbedding:
    """Return an object that finds a text by itself, whatever the server makes of texts."""
    return EmberdEmbedding(symmetric=True, **qwen, **more)


@llama_index
@pytest.mark.parametrize("dimensions", [1024, 2000])
def test_llama_index_finds_by_an_index(
    store: InLlamaIndex, qwen: dict[str, Any], dimensions: int
) -> None:
    assert nearest(store, same_for_both_roles(qwen, dimensions=dimensions)) == "sea"
    assert "using data_passages_embedding_idx" in way_to(store.database, store.table, dimensions)


@llama_index
def test_llama_index_only_logs_that_native_vectors_have_no_index(
    store: InLlamaIndex, qwen: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = nearest(store, same_for_both_roles(qwen), initialization_fail_on_error=False)
    assert found == "sea"
    assert (
        f"Error creating HNSW index: (psycopg2.errors.ProgramLimitExceeded) {REFUSED}"
        in caplog.text
    )
    assert "embedding_idx" not in way_to(store.database, store.table, NATIVE)


@llama_index
def test_llama_index_raises_it_when_asked_to(store: InLlamaIndex, qwen: dict[str, Any]) -> None:
    with pytest.raises(sqlalchemy.exc.OperationalError, match=REFUSED):
        nearest(store, same_for_both_roles(qwen), initialization_fail_on_error=True)


@llama_index
@pytest.mark.parametrize(
    ("chosen", "used"), [({}, False), ({"hnsw_dist_method": "halfvec_cosine_ops"}, True)]
)
def test_an_index_of_halfvec_is_used_if_its_distance_is_the_cosine(
    store: InLlamaIndex, qwen: dict[str, Any], chosen: dict[str, str], used: bool
) -> None:
    hnsw = {"hnsw_m": 16, "hnsw_ef_construction": 64, "hnsw_ef_search": 40, **chosen}
    assert nearest(store, same_for_both_roles(qwen), use_halfvec=True, hnsw_kwargs=hnsw) == "sea"
    way = way_to(store.database, store.table, NATIVE, "halfvec")
    assert ("using data_passages_embedding_idx" in way) is used

"""``EmberdEmbeddings`` in the vector stores of LangChain, with ``dimensions`` set."""

from __future__ import annotations

import pytest
from langchain_community.vectorstores import FAISS
from langchain_community.vectorstores.utils import DistanceStrategy
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

import emberd
from langchain_emberd import EmberdEmbeddings
from managed import MODEL, QUERIES
from stores.langchain_stores import STORES, TEXTS, InMemory, LangChainStore
from stores.store import LONG, SHORT

every_store = pytest.mark.parametrize(
    "store", STORES, indirect=True, ids=lambda kind: str(kind.name)
)


def embeddings_of(dimensions: int) -> EmberdEmbeddings:
    return EmberdEmbeddings(model=MODEL, dimensions=dimensions)


def found_in(store: VectorStore) -> dict[str, str]:
    """Return the name of the passage that each query finds."""
    hits = {query: store.similarity_search(query, k=1) for query in QUERIES}
    return {query: str(hit.metadata["name"]) for query, (hit,) in hits.items()}


@every_store
def test_a_query_in_another_language_finds_its_passage(store: LangChainStore) -> None:
    assert found_in(store.fill(embeddings_of(LONG))) == QUERIES


@every_store
def test_a_store_that_is_opened_again_finds_the_same(store: LangChainStore) -> None:
    store.fill(embeddings_of(LONG))
    store.close()
    assert found_in(store.open(embeddings_of(LONG))) == QUERIES


@every_store
def test_stored_identity_detects_an_object_with_other_settings(store: LangChainStore) -> None:
    embeddings = embeddings_of(LONG)
    store.fill(embeddings)
    store.save_identity(embeddings.identity)
    store.close()
    kept = store.load_identity()
    embeddings_of(LONG).check_identity(kept)
    with pytest.raises(emberd.IdentityError, match="dimensions 128 there, 64 here"):
        embeddings_of(SHORT).check_identity(kept)


@every_store
def test_a_query_of_another_length_is_refused(store: LangChainStore) -> None:
    store.fill(embeddings_of(LONG))
    store.close()
    with pytest.raises(store.refuses_query.error, match=store.refuses_query.pattern):
        store.open(embeddings_of(SHORT)).similarity_search("a query", k=1)


@pytest.mark.parametrize(
    "store",
    [kind for kind in STORES if kind.refuses_texts],
    indirect=True,
    ids=lambda kind: str(kind.name),
)
def test_a_text_of_another_length_is_refused_and_leaves_no_trace(store: LangChainStore) -> None:
    store.fill(embeddings_of(LONG))
    store.close()
    assert store.refuses_texts is not None
    with pytest.raises(store.refuses_texts.error, match=store.refuses_texts.pattern):
        store.open(embeddings_of(SHORT)).add_texts(["a text"], metadatas=[{"name": "new"}])
    store.close()
    assert found_in(store.open(embeddings_of(LONG))) == QUERIES


@pytest.mark.parametrize("store", [InMemory], indirect=True)
def test_the_in_memory_store_takes_it_and_breaks_at_the_next_query(store: InMemory) -> None:
    made = store.fill(embeddings_of(LONG))
    assert isinstance(made, InMemoryVectorStore)
    made.embedding = embeddings_of(SHORT)
    made.add_texts(["a text"])
    made.embedding = embeddings_of(LONG)
    with pytest.raises(ValueError, match="inhomogeneous shape"):
        made.similarity_search("a query", k=1)


def test_faiss_turns_relevance_round_where_it_keeps_inner_products() -> None:
    best_first: dict[DistanceStrategy, bool] = {}
    for strategy in (DistanceStrategy.EUCLIDEAN_DISTANCE, DistanceStrategy.MAX_INNER_PRODUCT):
        store = FAISS.from_texts(TEXTS, embeddings_of(LONG), distance_strategy=strategy)
        hits = store.similarity_search_with_relevance_scores("¿Quién ganó dos premios Nobel?")
        assert "Curie" in hits[0][0].page_content
        best_first[strategy] = hits[0][1] == max(score for _, score in hits)
    assert best_first == {
        DistanceStrategy.EUCLIDEAN_DISTANCE: True,
        DistanceStrategy.MAX_INNER_PRODUCT: False,
    }

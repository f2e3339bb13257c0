"""``EmberdEmbedding`` in the vector stores of LlamaIndex, with ``dimensions`` set."""

from __future__ import annotations

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from pymilvus.exceptions import MilvusException

import emberd
from llama_index.embeddings.emberd import EmberdEmbedding
from managed import MODEL, QUERIES
from stores.llama_index_stores import NAME_OF, STORES, InMilvus, LlamaIndexStore, Simple
from stores.store import LONG, SHORT

every_store = pytest.mark.parametrize(
    "store", STORES, indirect=True, ids=lambda kind: str(kind.name)
)


def embed_model_of(dimensions: int) -> EmberdEmbedding:
    return EmberdEmbedding(model_name=MODEL, dimensions=dimensions)


def found_in(index: VectorStoreIndex) -> dict[str, str]:
    """Return the name of the passage that each query finds."""
    retriever = index.as_retriever(similarity_top_k=1)
    hits = {query: retriever.retrieve(query) for query in QUERIES}
    return {query: NAME_OF[hit.node.node_id] for query, (hit,) in hits.items()}


@every_store
def test_a_query_in_another_language_finds_its_passage(store: LlamaIndexStore) -> None:
    assert found_in(store.fill(embed_model_of(LONG))) == QUERIES


@every_store
def test_a_store_that_is_opened_again_finds_the_same(store: LlamaIndexStore) -> None:
    store.fill(embed_model_of(LONG))
    store.close()
    assert found_in(store.open(embed_model_of(LONG))) == QUERIES


@every_store
def test_stored_identity_detects_an_object_with_other_settings(store: LlamaIndexStore) -> None:
    embed_model = embed_model_of(LONG)
    store.fill(embed_model)
    store.save_identity(embed_model.identity)
    store.close()
    kept = store.load_identity()
    embed_model_of(LONG).check_identity(kept)
    with pytest.raises(emberd.IdentityError, match="dimensions 128 there, 64 here"):
        embed_model_of(SHORT).check_identity(kept)


@every_store
def test_a_query_of_another_length_is_refused(store: LlamaIndexStore) -> None:
    store.fill(embed_model_of(LONG))
    store.close()
    retriever = store.open(embed_model_of(SHORT)).as_retriever(similarity_top_k=1)
    with pytest.raises(store.refuses_query.error, match=store.refuses_query.pattern):
        retriever.retrieve("a query")


@pytest.mark.parametrize(
    "store",
    [kind for kind in STORES if kind.refuses_texts],
    indirect=True,
    ids=lambda kind: str(kind.name),
)
def test_a_text_of_another_length_is_refused_and_leaves_no_trace(store: LlamaIndexStore) -> None:
    store.fill(embed_model_of(LONG))
    store.close()
    assert store.refuses_texts is not None
    with pytest.raises(store.refuses_texts.error, match=store.refuses_texts.pattern):
        store.open(embed_model_of(SHORT)).insert_nodes([TextNode(text="a text")])
    store.close()
    assert found_in(store.open(embed_model_of(LONG))) == QUERIES


@pytest.mark.parametrize("store", [Simple], indirect=True)
def test_the_simple_store_takes_it_and_breaks_at_the_next_query(store: Simple) -> None:
    store.fill(embed_model_of(LONG))
    index = store.open(embed_model_of(SHORT))
    index.insert_nodes([TextNode(text="a text")])
    index.storage_context.persist(str(store.folder))
    with pytest.raises(ValueError, match="inhomogeneous shape"):
        store.open(embed_model_of(LONG)).as_retriever().retrieve("a query")


@pytest.mark.parametrize("store", [InMilvus], indirect=True)
def test_milvus_lite_answers_no_query_before_the_collection_is_loaded(store: InMilvus) -> None:
    embed_model = embed_model_of(LONG)
    store.fill(embed_model)
    store.close()
    index = VectorStoreIndex.from_vector_store(store.store(embed_model), embed_model=embed_model)
    with pytest.raises(MilvusException, match="is in state 'released'; call load"):
        index.as_retriever().retrieve("a query")

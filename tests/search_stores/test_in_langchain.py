"""``EmberdEmbeddings`` with LangChain's classes for Redis and Elasticsearch."""

from __future__ import annotations

from typing import Any, Final

import pytest
from langchain_core.vectorstores import VectorStore
from langchain_elasticsearch import ElasticsearchStore
from langchain_redis import RedisConfig, RedisVectorStore

import emberd
from agents.recipes import Sent
from langchain_emberd import EmberdEmbeddings
from managed import MODEL, PASSAGES, QUERIES
from search_stores import page
from search_stores.index import ElasticsearchIndex, RedisIndex

LONG: Final = 128
SHORT: Final = 64


class InRedis(RedisIndex):
    """An index of Redis."""

    def open(self, embeddings: EmberdEmbeddings) -> Any:
        config = RedisConfig(
            index_name=self.name,
            redis_url=self.url,
            embedding_dimensions=LONG,
            metadata_schema=[{"name": "name", "type": "tag"}],
        )
        return RedisVectorStore(embeddings, config)


class InElasticsearch(ElasticsearchIndex):
    """An index of Elasticsearch."""

    def open(self, embeddings: EmberdEmbeddings) -> Any:
        return ElasticsearchStore(
            self.name, es_url=self.url, embedding=embeddings, num_dimensions=LONG
        )


@pytest.fixture(params=[InRedis, InElasticsearch])
def index(request: pytest.FixtureRequest) -> Any:
    """An index of each kind, which does not exist yet."""
    kind = request.param
    return kind(request.getfixturevalue("redis_url" if kind is InRedis else "elasticsearch_url"))


def _embeddings(dimensions: int = LONG) -> EmberdEmbeddings:
    return EmberdEmbeddings(model=MODEL, dimensions=dimensions)


def _filled(index: Any) -> VectorStore:
    store: VectorStore = index.open(_embeddings())
    store.add_texts(list(PASSAGES.values()), metadatas=[{"name": name} for name in PASSAGES])
    return store


def _found(store: VectorStore) -> dict[str, str]:
    hits = {query: store.similarity_search(query, k=1) for query in QUERIES}
    return {query: str(hit.metadata["name"]) for query, (hit,) in hits.items()}


def test_a_query_in_another_language_finds_its_passage(index: Any) -> None:
    assert _found(_filled(index)) == QUERIES


def test_a_store_that_is_opened_again_finds_the_same(index: Any) -> None:
    _filled(index)
    assert _found(index.open(_embeddings())) == QUERIES


def test_texts_and_queries_get_the_templates_of_their_roles(index: Any, sent: Sent) -> None:
    store = _filled(index)
    store.similarity_search("a query", k=1)
    texts = sent()
    assert sorted(texts[-5:-1]) == sorted(f"passage: {text}" for text in PASSAGES.values())
    assert texts[-1] == "query: a query"


def test_stored_identity_detects_an_object_with_other_settings(index: Any) -> None:
    _filled(index)
    index.save_identity(_embeddings().identity)
    kept = index.load_identity()
    _embeddings().check_identity(kept)
    with pytest.raises(emberd.IdentityError, match="dimensions 128 there, 64 here"):
        _embeddings(SHORT).check_identity(kept)


def test_a_query_of_another_length_is_refused(index: Any) -> None:
    _filled(index)
    error, said = index.refuses_query
    with pytest.raises(error, match=said):
        index.open(_embeddings(SHORT)).similarity_search("a query", k=1)


def test_elasticsearch_refuses_a_text_of_another_length(elasticsearch_url: str) -> None:
    index = InElasticsearch(elasticsearch_url)
    _filled(index)
    error, said = index.refuses_texts
    with pytest.raises(error, match=said):
        index.open(_embeddings(SHORT)).add_texts(["a text"], metadatas=[{"name": "new"}])
    assert _found(index.open(_embeddings())) == QUERIES


def test_redis_takes_a_text_of_another_length_and_never_finds_it(redis_url: str) -> None:
    index = InRedis(redis_url)
    _filled(index)
    index.open(_embeddings(SHORT)).add_texts(["a text"], metadatas=[{"name": "new"}])
    store = index.open(_embeddings())
    assert _found(store) == QUERIES
    assert len(store.similarity_search("a text", k=9)) == len(PASSAGES)


def test_the_code_of_the_page_for_redis_makes_a_store_that_works(
    monkeypatch: pytest.MonkeyPatch, redis_url: str
) -> None:
    with page.server() as server:
        made = page.run("langchain_redis", monkeypatch, server, redis_url=redis_url)
        made["store"].add_texts(["a text"])
        assert made["store"].similarity_search("a query", k=1)[0].page_content == "a text"
        made["client"].close()


def test_the_code_of_the_page_for_elasticsearch_makes_a_store_that_works(
    monkeypatch: pytest.MonkeyPatch, elasticsearch_url: str
) -> None:
    with page.server() as server:
        made = page.run("langchain_elasticsearch", monkeypatch, server, es_url=elasticsearch_url)
        (found,) = made["store"].similarity_search("a query", k=1)
        assert found.page_content == "a first text"
        made["client"].close()

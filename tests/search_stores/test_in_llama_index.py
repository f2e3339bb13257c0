"""``EmberdEmbedding`` with LlamaIndex's classes for Redis and Elasticsearch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Final

import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.vector_stores.elasticsearch import ElasticsearchStore
from llama_index.vector_stores.redis import RedisVectorStore
from llama_index.vector_stores.redis.schema import RedisVectorStoreSchema

import emberd
from agents.recipes import Sent
from llama_index.embeddings.emberd import EmberdEmbedding
from managed import MODEL, PASSAGES, QUERIES
from search_stores import page
from search_stores.index import ElasticsearchIndex, RedisIndex

LONG: Final = 128
SHORT: Final = 64
_NAMES: Final = {text: name for name, text in PASSAGES.items()}


class InRedis(RedisIndex):
    """An index of Redis."""

    refuses_texts = (ValueError, "dim 64 which doesn't match the index schema")

    def store(self) -> Any:
        schema = RedisVectorStoreSchema()
        schema.index.name = schema.index.prefix = self.name
        schema.fields["vector"].attrs.dims = LONG
        return RedisVectorStore(schema=schema, redis_url=self.url)

    def close(self, store: Any) -> None:
        store._redis_client.close()
        asyncio.get_event_loop().run_until_complete(store._redis_client_async.aclose())


class InElasticsearch(ElasticsearchIndex):
    """An index of Elasticsearch."""

    def store(self) -> Any:
        return ElasticsearchStore(self.name, es_url=self.url)

    def close(self, store: Any) -> None:
        asyncio.get_event_loop().run_until_complete(store.client.close())


class Opened:
    """An index, and the stores that a test has opened of it."""

    def __init__(self, kind: Any, url: str) -> None:
        self.kind = kind(url)
        self.stores: list[Any] = []

    def open(self, embed_model: EmberdEmbedding) -> VectorStoreIndex:
        self.stores.append(self.kind.store())
        return VectorStoreIndex.from_vector_store(self.stores[-1], embed_model=embed_model)

    def filled(self) -> VectorStoreIndex:
        self.stores.append(self.kind.store())
        context = StorageContext.from_defaults(vector_store=self.stores[-1])
        nodes = [TextNode(text=text) for text in PASSAGES.values()]
        return VectorStoreIndex(nodes, storage_context=context, embed_model=_embed_model())

    def close(self) -> None:
        for store in self.stores:
            self.kind.close(store)


@pytest.fixture(autouse=True)
def _loop() -> Iterator[None]:
    """LlamaIndex takes the event loop of the thread, on which the clients must also be closed."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture(params=[InRedis, InElasticsearch])
def index(request: pytest.FixtureRequest, _loop: None) -> Iterator[Opened]:
    """An index of each kind, which does not exist yet."""
    kind = request.param
    url = request.getfixturevalue("redis_url" if kind is InRedis else "elasticsearch_url")
    found = Opened(kind, url)
    yield found
    found.close()


def _embed_model(dimensions: int = LONG) -> EmberdEmbedding:
    return EmberdEmbedding(model_name=MODEL, dimensions=dimensions)


def _found(index: VectorStoreIndex) -> dict[str, str]:
    retriever = index.as_retriever(similarity_top_k=1)
    hits = {query: retriever.retrieve(query) for query in QUERIES}
    return {query: _NAMES[hit.node.get_content()] for query, (hit,) in hits.items()}


def test_a_query_in_another_language_finds_its_passage(index: Opened) -> None:
    assert _found(index.filled()) == QUERIES


def test_a_store_that_is_opened_again_finds_the_same(index: Opened) -> None:
    index.filled()
    assert _found(index.open(_embed_model())) == QUERIES


def test_texts_and_queries_get_the_templates_of_their_roles(index: Opened, sent: Sent) -> None:
    index.filled().as_retriever().retrieve("a query")
    texts = sent()
    assert sorted(texts[-5:-1]) == sorted(f"passage: {text}" for text in PASSAGES.values())
    assert texts[-1] == "query: a query"


def test_stored_identity_detects_an_object_with_other_settings(index: Opened) -> None:
    index.filled()
    index.kind.save_identity(_embed_model().identity)
    kept = index.kind.load_identity()
    _embed_model().check_identity(kept)
    with pytest.raises(emberd.IdentityError, match="dimensions 128 there, 64 here"):
        _embed_model(SHORT).check_identity(kept)


def test_a_query_of_another_length_is_refused(index: Opened) -> None:
    index.filled()
    error, said = index.kind.refuses_query
    with pytest.raises(error, match=said):
        index.open(_embed_model(SHORT)).as_retriever().retrieve("a query")


def test_a_text_of_another_length_is_refused_and_leaves_no_trace(index: Opened) -> None:
    index.filled()
    error, said = index.kind.refuses_texts
    with pytest.raises(error, match=said):
        index.open(_embed_model(SHORT)).insert_nodes([TextNode(text="a text")])
    assert _found(index.open(_embed_model())) == QUERIES


@pytest.mark.parametrize("kind", [InRedis, InElasticsearch])
def test_the_code_of_the_page_makes_a_store_that_works(
    monkeypatch: pytest.MonkeyPatch, kind: Any, redis_url: str, elasticsearch_url: str
) -> None:
    package = f"llama_index.vector_stores.{kind.__name__[2:].lower()}"
    with page.server() as server:
        urls = {"redis_url": redis_url, "es_url": elasticsearch_url}
        made = page.run(package, monkeypatch, server, **urls)
        context = StorageContext.from_defaults(vector_store=made["vector_store"])
        nodes = [TextNode(text=text) for text in PASSAGES.values()]
        index = VectorStoreIndex(nodes, storage_context=context, embed_model=made["embed_model"])
        assert len(index.as_retriever(similarity_top_k=9).retrieve("a query")) == len(PASSAGES)
        kind("").close(made["vector_store"])

"""``EmberdEmbedding`` at work, with the server that emberd found or started."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Sequence

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.callbacks import (
    CallbackManager,
    CBEventType,
    EventPayload,
    LlamaDebugHandler,
)
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from pydantic import SecretStr

import managed
from llama_index.embeddings.emberd import EmberdEmbedding
from managed import DIMENSIONS, MODEL, PASSAGES, QUERIES, same


@pytest.fixture
def embedding() -> EmberdEmbedding:
    return EmberdEmbedding(model_name=MODEL)


@pytest.fixture
def nodes() -> list[TextNode]:
    return [TextNode(id_=name, text=text) for name, text in PASSAGES.items()]


def _names(found: Sequence[NodeWithScore]) -> list[str]:
    return [hit.node.node_id for hit in found]


def test_an_index_finds_what_was_put_in(embedding: EmberdEmbedding, nodes: list[TextNode]) -> None:
    index = VectorStoreIndex(nodes, embed_model=embedding)
    retriever = index.as_retriever(similarity_top_k=1)
    assert {query: _names(retriever.retrieve(query)) for query in QUERIES} == {
        query: [name] for query, name in QUERIES.items()
    }


async def test_an_index_finds_it_asynchronously_too(
    embedding: EmberdEmbedding, nodes: list[TextNode]
) -> None:
    index = VectorStoreIndex([], embed_model=embedding)
    await index.ainsert_nodes(nodes)
    retriever = index.as_retriever(similarity_top_k=1)
    found = await asyncio.gather(*(retriever.aretrieve(query) for query in QUERIES))
    assert [_names(hits) for hits in found] == [[name] for name in QUERIES.values()]


async def test_both_ways_give_the_same_vectors(embedding: EmberdEmbedding) -> None:
    text, other = PASSAGES["sea"], PASSAGES["lock"]
    documents = embedding.get_text_embedding_batch([text, other])
    assert same(documents, await embedding.aget_text_embedding_batch([text, other]))
    assert same(documents[0], embedding.get_text_embedding(text))
    assert same(documents[0], await embedding.aget_text_embedding(text))
    query = embedding.get_query_embedding(text)
    assert same(query, await embedding.aget_query_embedding(text))
    assert not same(query, documents[0]), "a query is not a document"
    assert type(query[0]) is type(documents[0][0]) is float


@pytest.mark.parametrize("text", ["", " \n\t", "a\nb\r\nc", "中文 🙂 עברית", "{text} %s {0}"])
def test_texts_of_every_shape_are_embedded(embedding: EmberdEmbedding, text: str) -> None:
    (vector,) = embedding.get_text_embedding_batch([text])
    assert len(vector) == len(embedding.get_query_embedding(text)) == DIMENSIONS


def test_a_pipeline_embeds_nodes_with_their_metadata(embedding: EmberdEmbedding) -> None:
    node = TextNode(text="the body", metadata={"file": "a.txt"})
    (done,) = IngestionPipeline(transformations=[embedding]).run(nodes=[node])
    assert node.get_content(MetadataMode.EMBED) == "file: a.txt\n\nthe body"
    assert same(done.embedding, embedding.get_text_embedding("file: a.txt\n\nthe body"))


def test_the_cache_of_a_pipeline_outlives_a_new_url_key_and_batch_size(
    embedding: EmberdEmbedding, nodes: list[TextNode]
) -> None:
    cache = IngestionCache()
    at = embedding.endpoint()
    first = IngestionPipeline(transformations=[embedding], cache=cache).run(nodes=nodes)
    elsewhere = EmberdEmbedding(
        model_name=MODEL,
        base_url="http://127.0.0.1:9",
        api_key=SecretStr(at.api_key or ""),
        embed_batch_size=1,
    )
    again = IngestionPipeline(transformations=[elsewhere], cache=cache).run(nodes=nodes)
    assert [node.embedding for node in again] == [node.embedding for node in first]


def test_spawned_workers_get_their_own_answers(
    embedding: EmberdEmbedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [embedding.get_query_embedding(query) for query in QUERIES]
    url = embedding.endpoint().url
    monkeypatch.setenv("PYTHONPATH", managed.environment()["PYTHONPATH"])
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        answers = pool.map(_in_worker, [(embedding, query) for query in QUERIES], chunksize=1)
    assert same([vector for *_, vector in answers], expected)
    assert {(pid == os.getpid(), at) for pid, at, _ in answers} == {(False, url)}


def test_events_show_the_bare_text_and_no_secret(embedding: EmberdEmbedding) -> None:
    seen = LlamaDebugHandler(print_trace_on_end=False)
    watched = embedding.model_copy()
    watched.callback_manager = CallbackManager([seen])
    watched.get_query_embedding("the bare text")
    ((start, end),) = seen.get_event_pairs(CBEventType.EMBEDDING)
    assert (start.payload or {})[EventPayload.SERIALIZED] == {
        "class_name": "EmberdEmbedding",
        "model_name": MODEL,
        "embed_batch_size": 2048,
    }
    assert (end.payload or {})[EventPayload.CHUNKS] == ["the bare text"]


def _in_worker(asked: tuple[EmberdEmbedding, str]) -> tuple[int, str, list[float]]:
    embedding, query = asked
    vector = embedding.get_query_embedding(query)
    return os.getpid(), embedding.endpoint().url, vector

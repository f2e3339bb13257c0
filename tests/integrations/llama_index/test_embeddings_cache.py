"""``embeddings_cache``: LlamaIndex keys it by the bare text, and nothing gets mixed up here."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.callbacks import CallbackManager
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.storage.kvstore import SimpleKVStore

from fake_server import QWEN, FakeServer, vector_of, vectors_of
from llama_index.embeddings.emberd import EmberdEmbedding
from managed import same

_DIMENSIONS = 1024


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(model=QWEN, dimensions=_DIMENSIONS) as running:
        yield running


@pytest.fixture
def store() -> SimpleKVStore:
    return SimpleKVStore()


def _made(server: FakeServer, store: Any, **settings: Any) -> EmberdEmbedding:
    return EmberdEmbedding(model_name=QWEN, base_url=server.url, embeddings_cache=store, **settings)


def _count(server: FakeServer) -> int:
    return sum(len(batch) for batch in server.embedded)


def test_a_query_never_gets_the_vector_of_a_document(
    server: FakeServer, store: SimpleKVStore
) -> None:
    embedding = _made(server, store)
    document = embedding.get_text_embedding("Paris")
    query = embedding.get_query_embedding("Paris")
    assert same(document, vector_of("Paris", _DIMENSIONS))
    assert same(
        query, vector_of(embedding.embedder.query_template.replace("{text}", "Paris"), 1024)
    )
    assert same(embedding.get_text_embedding_batch(["Paris"]), [document])


async def test_nor_does_it_asynchronously_with_both_at_once(
    server: FakeServer, store: SimpleKVStore
) -> None:
    embedding = _made(server, store, embed_batch_size=1)
    template = embedding.embedder.query_template
    names = [f"city {number}" for number in range(20)]
    for _ in range(2):
        documents, *queries = await asyncio.gather(
            embedding.aget_text_embedding_batch(names),
            *(embedding.aget_query_embedding(name) for name in names),
        )
        assert same(documents, vectors_of(names, _DIMENSIONS))
        sent = [template.replace("{text}", name) for name in names]
        assert same(queries, vectors_of(sent, _DIMENSIONS))


async def test_what_is_in_the_cache_is_not_asked_for_again(
    server: FakeServer, store: SimpleKVStore
) -> None:
    embedding = _made(server, store)
    embedding.get_query_embedding("a")
    embedding.get_text_embedding_batch(["a", "b"])
    before = _count(server)
    embedding.get_query_embedding("a")
    await embedding.aget_query_embedding("a")
    embedding.get_text_embedding("a")
    embedding.get_text_embedding_batch(["b", "a"])
    await embedding.aget_text_embedding_batch(["a", "b"])
    assert _count(server) == before
    embedding.get_text_embedding_batch(["a", "c"])
    assert _count(server) == before + 1


@pytest.mark.parametrize(
    "other",
    [
        {"dimensions": 64},
        {"query_instruction": "code"},
        {"text_instruction": "body: {text}"},
        {"revision": "0123abc"},
        {"quantization": "fp8"},
        {"truncate": True},
    ],
    ids=lambda given: next(iter(given)),
)
def test_cache_keys_differ_between_settings(
    server: FakeServer, store: SimpleKVStore, other: dict[str, Any]
) -> None:
    one, another = _made(server, store), _made(server, store, **other)
    for embedding in (one, another):
        embedding.get_query_embedding("a")
        embedding.get_text_embedding("a")
    assert len(store.get_all(collection="embeddings")) == 4


def test_entries_with_keys_of_another_format_are_not_found(
    server: FakeServer, store: SimpleKVStore
) -> None:
    embedding = _made(server, store)
    right = embedding.get_text_embedding("a")
    [(key, entry)] = store.get_all(collection="embeddings").items()
    version, rest = key.split("\n", 1)
    assert version == "emberd 1"
    for other in (rest, f"emberd 0\n{rest}"):
        wrong = {name: [0.0] for name in entry}
        store.put(other, wrong, collection="embeddings")
    store.delete(key, collection="embeddings")
    assert same(embedding.get_text_embedding("a"), right)


def test_a_store_that_was_saved_serves_another_process(
    server: FakeServer, store: SimpleKVStore, tmp_path: Path
) -> None:
    first = _made(server, store).get_text_embedding("a")
    store.persist(str(tmp_path / "cache.json"))
    before = _count(server)
    loaded = SimpleKVStore.from_persist_path(str(tmp_path / "cache.json"))
    assert same(_made(server, loaded).get_text_embedding("a"), first)
    assert _count(server) == before


def test_copies_and_pickles_keep_the_cache(server: FakeServer, store: SimpleKVStore) -> None:
    embedding = _made(server, store)
    embedding.get_text_embedding("a")
    shorter = embedding.model_copy(update={"dimensions": 64})
    assert len(shorter.get_text_embedding("a")) == 64
    assert shorter.embeddings_cache is not None
    assert shorter.embeddings_cache.store is store, "the user's own, wrapped once"
    before = _count(server)
    back = pickle.loads(pickle.dumps(embedding))
    assert same(back.get_text_embedding("a"), vector_of("a", _DIMENSIONS))
    assert _count(server) == before


class _Asks(BaseCallbackHandler):
    """Embeds the same text in the other role while a call is under way."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.other: Any = None

    def on_event_start(self, *_: Any, **__: Any) -> str:
        other, self.other = self.other, None
        if other is not None:
            other()
        return ""

    def on_event_end(self, *_: Any, **__: Any) -> None: ...
    def start_trace(self, trace_id: str | None = None) -> None: ...
    def end_trace(self, *_: Any, **__: Any) -> None: ...


def test_a_callback_that_embeds_in_the_middle_of_a_call_keeps_its_own_role(
    server: FakeServer, store: SimpleKVStore
) -> None:
    handler = _Asks()
    embedding = _made(server, store, callback_manager=CallbackManager([handler]))
    template = embedding.embedder.query_template
    for name, outer, inner in (
        ("Paris", embedding.get_query_embedding, embedding.get_text_embedding),
        ("Rome", embedding.get_text_embedding, embedding.get_query_embedding),
    ):
        handler.other = partial(inner, name)
        outer(name)
        assert same(embedding.get_text_embedding(name), vector_of(name, _DIMENSIONS))
        sent = template.replace("{text}", name)
        assert same(embedding.get_query_embedding(name), vector_of(sent, _DIMENSIONS))

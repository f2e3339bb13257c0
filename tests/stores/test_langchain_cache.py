"""LangChain's ``CacheBackedEmbeddings`` over ``EmberdEmbeddings``: what keeps its keys apart."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_classic.storage import LocalFileStore
from langchain_core.stores import InMemoryByteStore, InvalidKeyException

from langchain_emberd import EmberdEmbeddings
from managed import MODEL, same

_TEXT = "Paris"


def cached(embeddings: EmberdEmbeddings, store: Any, **more: Any) -> CacheBackedEmbeddings:
    """Return what the page says to make: a hash, for a file's name cannot hold an identity."""
    return CacheBackedEmbeddings.from_bytes_store(
        embeddings,
        store,
        namespace=hashlib.sha256(embeddings.identity.encode()).hexdigest(),
        key_encoder="sha256",
        **more,
    )


def test_cache_keys_differ_between_settings(tmp_path: Path) -> None:
    store = LocalFileStore(tmp_path)
    usual = EmberdEmbeddings(model=MODEL)
    for other in ({}, {"dimensions": 64}, {"document_instruction": "body: {text}"}):
        embeddings = usual.model_copy(update=other)
        for _ in range(2):
            (vector,) = cached(embeddings, store).embed_documents([_TEXT])
            assert same(vector, embeddings.embed_documents([_TEXT])[0])
    assert len(list(store.yield_keys())) == 3


def test_without_namespace_cache_keys_collide() -> None:
    store = InMemoryByteStore()
    for dimensions in (384, 64):
        embeddings = EmberdEmbeddings(model=MODEL, dimensions=dimensions)
        made = CacheBackedEmbeddings.from_bytes_store(embeddings, store, key_encoder="sha256")
        assert len(made.embed_documents([_TEXT])[0]) == 384


def test_an_identity_as_it_stands_is_no_name_of_a_file(tmp_path: Path) -> None:
    embeddings = EmberdEmbeddings(model=MODEL)
    made = CacheBackedEmbeddings.from_bytes_store(
        embeddings, LocalFileStore(tmp_path), namespace=embeddings.identity, key_encoder="sha256"
    )
    with pytest.raises(InvalidKeyException):
        made.embed_documents([_TEXT])


@pytest.mark.parametrize("shared", [True, False])
def test_queries_need_a_store_of_their_own(shared: bool) -> None:
    embeddings = EmberdEmbeddings(model=MODEL)
    queries = True if shared else InMemoryByteStore()
    made = cached(embeddings, InMemoryByteStore(), query_embedding_cache=queries)
    (document,) = made.embed_documents([_TEXT])
    assert same(made.embed_query(_TEXT), document) is shared
    assert same(made.embed_query(_TEXT), embeddings.embed_query(_TEXT)) is not shared

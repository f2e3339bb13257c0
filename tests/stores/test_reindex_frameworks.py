"""``emberd reindex`` of what LangChain and LlamaIndex wrote: the vectors that they would write."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import pytest
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import MetadataMode, TextNode

from emberd.stores.reindexing import reindex
from langchain_emberd import EmberdEmbeddings, guarded
from llama_index.embeddings.emberd import EmberdEmbedding
from managed import MODEL, QUERIES
from stores import langchain_stores, llama_index_stores
from stores.langchain_stores import LangChainStore
from stores.llama_index_stores import NAME_OF, LlamaIndexStore
from stores.reindexed import opened, vectors_of
from stores.store import LONG, NAME, SHORT
from stores.test_langchain import found_in

_KINDS: Final = {"chroma", "qdrant", "lancedb"}


def _kinds(stores: Iterable[Any]) -> pytest.MarkDecorator:
    kinds = [kind for kind in stores if kind.name in _KINDS]
    return pytest.mark.parametrize("store", kinds, indirect=True, ids=lambda kind: str(kind.name))


@_kinds(langchain_stores.STORES)
def test_a_collection_of_langchain(store: LangChainStore) -> None:
    short = EmberdEmbeddings(model=MODEL, dimensions=SHORT)
    store.fill(EmberdEmbeddings(model=MODEL, dimensions=LONG))
    store.close()
    with opened(store.name, store.folder) as rows:
        is_renamed = store.name == "chroma"
        new = reindex(rows, NAME, short.embedder, switch=is_renamed).collection
        found = vectors_of(rows, NAME if is_renamed else new)
    wanted = sorted(short.embed_documents(langchain_stores.TEXTS))
    assert np.allclose(sorted(vector.tolist() for (vector,) in found.values()), wanted, atol=1e-5)
    if is_renamed:
        place = store.client(), NAME  # type: ignore[attr-defined]
        assert found_in(guarded(store.open(short), short, at=place)) == QUERIES


@_kinds(llama_index_stores.STORES)
def test_a_collection_of_llama_index_with_its_metadata_in_the_texts(store: LlamaIndexStore) -> None:
    short = EmberdEmbedding(model_name=MODEL, dimensions=SHORT)
    long = EmberdEmbedding(model_name=MODEL, dimensions=LONG)
    metadata: list[dict[str, Any]] = [
        {"title": "One", "page": 1},
        {"title": " Two ", "page": 2},
        {"title": "", "page": 3},
        {"title": "{braces}", "page": 4},
    ]
    nodes = [
        TextNode(id_=id_, text=f"text {number} ", metadata=each)
        for number, (id_, each) in enumerate(zip(NAME_OF, metadata, strict=True))
    ]
    nodes[1].excluded_embed_metadata_keys = ["page"]
    nodes[2].text_template = "{content} -- {metadata_str}"
    nodes[3].metadata_template, nodes[3].metadata_separator = "{key}={value}", " ; "
    vector_store = store.store(long)
    context = StorageContext.from_defaults(vector_store=vector_store)
    VectorStoreIndex(nodes, storage_context=context, embed_model=long)
    store.close()
    with opened(store.name, store.folder) as rows:
        found = vectors_of(rows, reindex(rows, NAME, short.embedder).collection)
    for node in nodes:
        wanted = short.get_text_embedding(node.get_content(metadata_mode=MetadataMode.EMBED))
        assert np.allclose(found[node.node_id][0], wanted, atol=1e-5), node

"""What is not a list of texts is refused by every method that takes several, sync and async."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from llama_index.core.storage.kvstore import SimpleKVStore

from emberd import Embedder, TextError, check_texts
from emberd.ray import EmbedBatches
from langchain_emberd import EmberdEmbeddings
from llama_index.embeddings.emberd import EmberdEmbedding

NOWHERE = "http://127.0.0.1:9"  # refusals come before any connection


class Table:
    """Iterates over the names of its columns, as a ``DataFrame`` of pandas does."""

    columns = ("text", "title")

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


NO_LISTS = {
    "str": "hello",
    "bytes": b"hello",
    "bytearray": bytearray(b"hello"),
    "dict": {"first": "a", "second": "b"},
    "table": Table(),
    "None": None,
    "number": 5,
}
LISTS = {
    "list": ["a"],
    "tuple": ("a", "b"),
    "generator": (text for text in "ab"),
    "values": {"first": "a"}.values(),
    "array": np.array(["a", "b"]),
}

# Each runs one method of an object to its end.
SYNC: dict[str, Callable[[Any, Any], Any]] = {
    "embed_documents": lambda own, texts: own.embed_documents(texts),
    "embed_queries": lambda own, texts: own.embed_queries(texts),
    "iter_documents": lambda own, texts: list(own.iter_documents(texts)),
    "iter_queries": lambda own, texts: list(own.iter_queries(texts, set_aside=True)),
    "get_text_embedding_batch": lambda own, texts: own.get_text_embedding_batch(texts),
    "get_agg_embedding": lambda own, texts: own.get_agg_embedding_from_queries(texts),
}


async def _all(rows: Any) -> list[Any]:
    return [row async for row in rows]


ASYNC: dict[str, Callable[[Any, Any], Any]] = {
    "aembed_documents": lambda own, texts: own.aembed_documents(texts),
    "aembed_queries": lambda own, texts: own.aembed_queries(texts),
    "aiter_documents": lambda own, texts: _all(own.aiter_documents(texts)),
    "aiter_queries": lambda own, texts: _all(own.aiter_queries(texts, set_aside=True)),
    "aget_text_embedding_batch": lambda own, texts: own.aget_text_embedding_batch(texts),
    "aget_agg_embedding": lambda own, texts: own.aget_agg_embedding_from_queries(texts),
}


def _embedder(**settings: Any) -> Embedder:
    return Embedder(base_url=NOWHERE, **settings)


def _llama_index(**settings: Any) -> EmberdEmbedding:
    return EmberdEmbedding(base_url=NOWHERE, **settings)


MAKE: dict[str, Callable[[], Any]] = {
    "Embedder": _embedder,
    "Embedder with a bar": lambda: _embedder(show_progress=True),
    "LangChain": lambda: EmberdEmbeddings(base_url=NOWHERE),
    "LangChain with a bar": lambda: EmberdEmbeddings(base_url=NOWHERE, show_progress_bar=True),
    "LlamaIndex": _llama_index,
    "LlamaIndex with a cache": lambda: _llama_index(embeddings_cache=SimpleKVStore()),
}
_OWN = ("embed_documents", "embed_queries", "iter_documents", "iter_queries")
_LANGCHAIN = ("embed_documents",)
_LLAMA_INDEX = ("get_text_embedding_batch", "get_agg_embedding")
METHODS = {
    **dict.fromkeys(("Embedder", "Embedder with a bar"), _OWN),
    **dict.fromkeys(("LangChain", "LangChain with a bar"), _LANGCHAIN),
    **dict.fromkeys(("LlamaIndex", "LlamaIndex with a cache"), _LLAMA_INDEX),
}
CASES = [(kind, method) for kind, methods in METHODS.items() for method in methods]


@pytest.mark.parametrize("texts", NO_LISTS.values(), ids=NO_LISTS)
def test_what_is_not_a_list_of_texts_is_refused(texts: Any) -> None:
    for kind, method in CASES:
        print(kind, method)  # shown if it fails
        with pytest.raises(TextError):
            SYNC[method](MAKE[kind](), texts)


@pytest.mark.parametrize("texts", NO_LISTS.values(), ids=NO_LISTS)
def test_async_methods_refuse_the_same(texts: Any) -> None:
    async def call(kind: str, method: str) -> None:
        await ASYNC[f"a{method}"](MAKE[kind](), texts)

    for kind, method in CASES:
        print(kind, method)  # shown if it fails
        with pytest.raises(TextError):
            asyncio.run(call(kind, method))


@pytest.mark.parametrize("texts", LISTS.values(), ids=LISTS)
def test_iterables_of_texts_are_accepted(texts: Any) -> None:
    check_texts(texts)


def test_a_row_given_to_ray_in_place_of_a_batch_is_refused() -> None:
    """``Dataset.map`` calls with one row, where ``map_batches`` calls with many."""
    with pytest.raises(TextError):
        EmbedBatches(base_url=NOWHERE)({"text": "hello"})

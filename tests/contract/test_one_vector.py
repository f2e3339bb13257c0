"""A text in a role has the same vector through every API."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from emberd import Embedder
from langchain_emberd import EmberdEmbeddings
from llama_index.embeddings.emberd import EmberdEmbedding
from managed import MODEL, same

_TEXT = "Sourdough rises slowly:\nwild yeast needs twelve hours. 深层嵌入 🙂"
_MANY = 300  # more than fit into one request
_PLACE = 217


@pytest.fixture(params=["made", "unpickled"])
def apis(request: pytest.FixtureRequest) -> tuple[Embedder, EmberdEmbeddings, EmberdEmbedding]:
    made = (Embedder(MODEL), EmberdEmbeddings(model=MODEL), EmberdEmbedding(model_name=MODEL))
    if request.param == "unpickled":
        unpickled: tuple[Embedder, EmberdEmbeddings, EmberdEmbedding]
        unpickled = pickle.loads(pickle.dumps(made))
        return unpickled
    return made


async def _documents(apis: Any, texts: list[str]) -> AsyncIterator[tuple[str, Any]]:
    plain, langchain, llama_index = apis
    yield "Embedder", plain.embed_documents(texts)
    yield "Embedder, async", await plain.aembed_documents(texts)
    yield "LangChain", langchain.embed_documents(texts)
    yield "LangChain, async", await langchain.aembed_documents(texts)
    yield "LlamaIndex", llama_index.get_text_embedding_batch(texts)
    yield "LlamaIndex, async", await llama_index.aget_text_embedding_batch(texts)


async def _queries(apis: Any) -> AsyncIterator[tuple[str, Any]]:
    plain, langchain, llama_index = apis
    yield "Embedder", plain.embed_query(_TEXT)
    yield "Embedder, async", await plain.aembed_query(_TEXT)
    yield "LangChain", langchain.embed_query(_TEXT)
    yield "LangChain, async", await langchain.aembed_query(_TEXT)
    yield "LlamaIndex", llama_index.get_query_embedding(_TEXT)
    yield "LlamaIndex, async", await llama_index.aget_query_embedding(_TEXT)


async def test_document_has_the_same_vector_in_every_api(apis: Any) -> None:
    expected = Embedder(MODEL).embed_documents([_TEXT])[0]
    async for api, vectors in _documents(apis, [_TEXT]):
        assert same(vectors[0], expected), api


async def test_document_has_the_same_vector_among_many() -> None:
    """One method of each framework is enough: they share the rest of the code."""
    many = [str(number) for number in range(_MANY)]
    many[_PLACE] = _TEXT
    langchain, llama_index = EmberdEmbeddings(model=MODEL), EmberdEmbedding(model_name=MODEL)
    expected = langchain.embed_documents([_TEXT])[0]
    for vectors in (
        await langchain.aembed_documents(many),
        llama_index.get_text_embedding_batch(many),
    ):
        assert len(vectors) == _MANY
        assert same(vectors[_PLACE], expected)


async def test_query_has_the_same_vector_in_every_api(apis: Any) -> None:
    expected = Embedder(MODEL).embed_query(_TEXT)
    async for api, vector in _queries(apis):
        assert same(vector, expected), api
    similarity = np.dot(expected, Embedder(MODEL).embed_documents([_TEXT])[0])
    assert similarity < 0.999, "the roles need different vectors, or the test proves nothing"

"""The requests of each framework's retriever, recorded by a fake server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode

from fake_server import QWEN, FakeServer
from langchain_emberd import EmberdEmbeddings
from llama_index.embeddings.emberd import EmberdEmbedding

_DIMENSIONS = 1024  # of Qwen3-Embedding-0.6B
_TEXT = "the only passage"
_QUESTION = "What\n is it?"
_SENT = f"Instruct: Find the bug\nQuery:{_QUESTION}"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(model=QWEN, dimensions=_DIMENSIONS) as running:
        yield running


async def test_langchain_retriever_sends_the_instruction(server: FakeServer) -> None:
    embeddings = EmberdEmbeddings(model=QWEN, base_url=server.url, query_instruction="Find the bug")
    embeddings.embedder.ensure()
    server.requests.clear()
    retriever = InMemoryVectorStore.from_texts([_TEXT], embeddings).as_retriever()
    found = [*retriever.invoke(_QUESTION), *await retriever.ainvoke(_QUESTION)]
    assert [document.page_content for document in found] == [_TEXT, _TEXT]
    assert server.embedded == [[_TEXT], [_SENT], [_SENT]]


async def test_llama_index_retriever_sends_the_instruction(server: FakeServer) -> None:
    embedding = EmberdEmbedding(
        model_name=QWEN, base_url=server.url, query_instruction="Find the bug"
    )
    embedding.embedder.ensure()
    server.requests.clear()
    index = VectorStoreIndex([TextNode(text=_TEXT)], embed_model=embedding)
    retriever = index.as_retriever()
    found = [*retriever.retrieve(_QUESTION), *await retriever.aretrieve(_QUESTION)]
    assert [hit.text for hit in found] == [_TEXT, _TEXT]
    assert server.embedded == [[_TEXT], [_SENT], [_SENT]]

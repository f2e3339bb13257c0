"""What can be said for one call, as ``OpenAIEmbeddings`` lets one say it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from emberd import SettingError
from fake_server import QWEN, FakeServer, vector_of, vectors_of
from langchain_emberd import EmberdEmbeddings
from managed import same

_DIMENSIONS = 1024


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(model=QWEN, dimensions=_DIMENSIONS) as running:
        yield running


@pytest.fixture
def embeddings(server: FakeServer) -> EmberdEmbeddings:
    made = EmberdEmbeddings(model=QWEN, base_url=server.url)
    made.embedder.ensure()
    server.requests.clear()
    return made


async def test_chunk_size_bounds_the_requests_of_one_call(
    embeddings: EmberdEmbeddings, server: FakeServer
) -> None:
    texts = [f"text {number}" for number in range(10)]
    assert same(embeddings.embed_documents(texts, 2), vectors_of(texts, _DIMENSIONS))
    assert [len(batch) for batch in server.embedded] == [2] * 5
    await embeddings.aembed_documents(texts, chunk_size=5)
    assert [len(batch) for batch in server.embedded[5:]] == [5] * 2
    embeddings.embed_documents(texts)
    assert [len(batch) for batch in server.embedded[7:]] == [10]


async def test_dimensions_and_instructions_hold_for_one_call(
    embeddings: EmberdEmbeddings,
) -> None:
    assert len(embeddings.embed_query("a", dimensions=64)) == 64
    assert len((await embeddings.aembed_documents(["a"], dimensions=64))[0]) == 64
    bare = vector_of("a", _DIMENSIONS)
    assert same(embeddings.embed_query("a", query_instruction=""), bare)
    assert same(await embeddings.aembed_query("a", symmetric=True), bare)
    assert not same(embeddings.embed_query("a"), bare)


def test_what_cannot_be_changed_for_a_call_is_refused(embeddings: EmberdEmbeddings) -> None:
    with pytest.raises(SettingError, match="model cannot be changed for one call"):
        embeddings.embed_query("a", model="another")
    with pytest.raises(SettingError, match="looks like a prefix"):
        embeddings.embed_query("a", query_instruction="query: ")
    with pytest.raises(SettingError, match="batch_size=0"):
        embeddings.embed_documents(["a"], 0)

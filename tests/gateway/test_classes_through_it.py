"""emberd's own classes with the gateway as their server: the vectors and errors of a direct one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from emberd import Embedder, Reranker, ServerMismatchError, TextTooLongError
from fake_reranker import MODEL as RERANKER
from fake_server import QWEN, FakeServer
from gateway.conftest import Faked
from gateways import Running, serving
from langchain_emberd import EmberdEmbeddings
from llama_index.embeddings.emberd import EmberdEmbedding

TEXTS = ["a doc", "  white space  ", "{text}", "<|endoftext|>", "x?task=code", "", " "]
TOO_LONG = "x" * 2000  # the fake server takes 1,000 tokens


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer(model=QWEN, dimensions=1024) as server:
        yield server


@pytest.fixture(scope="module")
def changed(server: FakeServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A gateway whose own settings must not change the vectors of emberd's classes."""
    settings = {
        "EMBERD_BASE_URL": server.url,
        "EMBERD_MODEL": QWEN,
        "EMBERD_TRUNCATE": "1",
        "EMBERD_SYMMETRIC": "1",
        "EMBERD_QUERY_INSTRUCTION": "clustering",
    }
    with serving(tmp_path_factory.mktemp("changed") / "home", environment=settings) as running:
        yield running


def _through(gateway: Running, **settings: Any) -> dict[str, Any]:
    return {"base_url": f"{gateway.url}/v1", "api_key": gateway.key, **settings}


@pytest.mark.parametrize(
    "settings", [{}, {"dimensions": 256}, {"query_instruction": "code"}], ids=str
)
def test_all_texts_have_the_vectors_of_the_server(
    changed: Running, server: FakeServer, settings: dict[str, Any]
) -> None:
    through = Embedder(QWEN, **_through(changed, **settings))
    direct = Embedder(QWEN, base_url=server.url, **settings)
    np.testing.assert_array_equal(through.embed_documents(TEXTS), direct.embed_documents(TEXTS))
    query = direct.embed_query("a query")
    np.testing.assert_array_equal(through.embed_query("a query"), query)
    np.testing.assert_array_equal(asyncio.run(through.aembed_query("a query")), query)
    assert through.identity == direct.identity


def test_the_classes_of_both_frameworks_have_them_too(changed: Running, server: FakeServer) -> None:
    query = Embedder(QWEN, base_url=server.url).embed_query("a query")
    chain = EmberdEmbeddings(model=QWEN, **_through(changed))
    index = EmberdEmbedding(model_name=QWEN, **_through(changed))
    np.testing.assert_array_equal(np.asarray(chain.embed_query("a query"), np.float32), query)
    np.testing.assert_array_equal(
        np.asarray(index.get_query_embedding("a query"), np.float32), query
    )


@pytest.mark.parametrize("truncate", [False, True])
def test_a_text_that_is_too_long_is_never_cut_by_the_gateway(
    changed: Running, truncate: bool
) -> None:
    """Only the class knows where its template ends, and whether cutting is wanted."""
    embedder = Embedder(QWEN, **_through(changed, truncate=truncate))
    with pytest.raises(TextTooLongError) as raised:
        embedder.embed_documents(["short", TOO_LONG])
    assert (raised.value.index, raised.value.tokens, raised.value.limit) == (1, 2001, 999)


def test_a_reranker_is_referred_to_the_route_of_the_gateway(faked: Faked) -> None:
    reranker = Reranker(RERANKER, **_through(faked.running))
    with pytest.raises(ServerMismatchError, match="/v1/rerank"):
        reranker.scores("a query", ["a document"])

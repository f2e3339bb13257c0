"""Stand-ins for the servers that need a GPU, for code that names no server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from canned_server import CannedServer
from fake_reranker import MODEL, FakeReranker

__all__ = ["stand_ins"]


@pytest.fixture(scope="module")
def stand_ins() -> Iterator[dict[str, str]]:
    """The environment in which Qwen3-Embedding-4B, a reranker and a language model are served."""
    with CannedServer() as embeds, FakeReranker() as scores:
        yield {
            "EMBERD_BASE_URL": embeds.url,
            "EMBERD_RERANK_MODEL": MODEL,
            "EMBERD_RERANK_BASE_URL": scores.url,
            "IS_TESTING": "1",  # LlamaIndex's name for a stand-in of the language model
        }

"""The snippets of ``docs/vector-stores.md``, as they stand there."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Final

import pytest
from langchain_core.vectorstores import VectorStore
from llama_index.core import StorageContext, VectorStoreIndex
from milvus_lite.server_manager import server_manager_instance

import pages
from fake_server import QWEN, FakeServer
from llama_index.embeddings.emberd import EmberdEmbedding
from stores.llama_index_stores import nodes
from stores.postgres import Database

_SHARED, *_BLOCKS = (block.text for block in pages.python("docs/vector-stores.md"))
# Two need an account, or a server that no package has: the page says that they were not run. The
# others are run in tests/search_stores.
_ELSEWHERE: Final = ("pinecone", "weaviate", "redis", "elasticsearch")


def _name(block: str) -> str:
    (first,) = re.findall(r"from (langchain_\w+|llama_index\.vector_stores\.\w+)", block)[:1]
    return str(first)


@pytest.mark.parametrize(
    "block",
    [block for block in _BLOCKS if not any(name in block for name in _ELSEWHERE)],
    ids=_name,
)
def test_a_snippet_of_the_page_makes_a_store_that_works(
    block: str, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with FakeServer(model=QWEN.replace("0.6B", "4B"), dimensions=2560) as server:
        monkeypatch.setenv("EMBERD_BASE_URL", server.url)
        names: dict[str, Any] = {
            "url": database.url("asyncpg"),
            "sync_url": database.url("psycopg2"),
        }
        exec(_SHARED, names)
        try:
            exec(block, names)
            _used(names)
        finally:
            _closed(names)


def _used(names: dict[str, Any]) -> None:
    """Put something into each store that the snippet made, and find it again."""
    store: VectorStore | None = names.get("store")
    if store is not None:
        store.add_texts(["a text"])
        assert store.similarity_search("a query", k=1)[0].page_content == "a text"
    if (kept := names.get("vector_store")) is not None:
        embed_model: EmberdEmbedding = names["embed_model"]
        if getattr(kept, "embed_dim", None) == 2560:
            embed_model = embed_model.model_copy(update={"dimensions": 2560})
        context = StorageContext.from_defaults(vector_store=kept)
        index = VectorStoreIndex(nodes(), storage_context=context, embed_model=embed_model)
        assert len(index.as_retriever(similarity_top_k=4).retrieve("a query")) == 4


def _closed(names: dict[str, Any]) -> None:
    """Close what a program's end would close."""
    for name in ("client", "connection", "engine", "vector_store"):
        close = getattr(names.get(name), "close", None)
        ended = close() if close else None
        if inspect.isawaitable(ended):
            asyncio.run(_waited_for(ended))
    server_manager_instance.release_all()


async def _waited_for(ended: Awaitable[None]) -> None:
    await ended

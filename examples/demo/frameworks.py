"""The same operations with LangChain and with LlamaIndex."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from emberd import SettingError, Settings
from passages import Passage
from recall import Floats

_INSTALL: Final = (
    "pip install ./backend ./integrations/langchain-emberd "
    "./integrations/llama-index-embeddings-emberd"
)


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that was found, and its cosine similarity to the query."""

    id: str
    score: float


class Framework(Protocol):
    """An index of one framework that uses emberd's embeddings."""

    name: str

    def add(self, passages: Sequence[Passage]) -> None:
        """Embed passages and add them to the index."""

    def search(self, query: str, count: int) -> list[Hit]:
        """Return the ``count`` nearest passages, nearest first."""

    def stored(self, ids: Sequence[str]) -> Floats:
        """Return the vectors that the index holds for ``ids``, ``(len(ids), d)``."""

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the vectors of documents."""


def both(settings: Settings) -> tuple[Framework, Framework]:
    """Return an empty index of each framework.

    Raises:
        SettingError: A framework is not installed.
    """
    try:
        return LangChain(settings), LlamaIndex(settings)
    except ImportError as error:
        raise SettingError(
            f"The demo shows both frameworks, and {error.name or error} is not installed. "
            f"Run: {_INSTALL}"
        ) from error


class LangChain:
    """``InMemoryVectorStore`` with ``EmberdEmbeddings``."""

    name = "LangChain"

    def __init__(self, settings: Settings) -> None:
        """Make an empty index without a request to the server."""
        from langchain_core.vectorstores import InMemoryVectorStore

        from langchain_emberd import EmberdEmbeddings

        self._embeddings = EmberdEmbeddings(model=settings.model, engine=settings.engine)
        self._index = InMemoryVectorStore(self._embeddings)

    def add(self, passages: Sequence[Passage]) -> None:
        """Embed passages and add them to the index."""
        self._index.add_texts([p.text for p in passages], ids=[p.id for p in passages])

    def search(self, query: str, count: int) -> list[Hit]:
        """Return the ``count`` nearest passages, nearest first."""
        found = self._index.similarity_search_with_score(query, k=count)
        return [Hit(str(document.id), float(score)) for document, score in found]

    def stored(self, ids: Sequence[str]) -> Floats:
        """Return the vectors that the index holds for ``ids``, ``(len(ids), d)``."""
        return np.array([self._index.store[id_]["vector"] for id_ in ids], np.float32)

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query."""
        return self._embeddings.embed_query(text)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the vectors of documents."""
        return self._embeddings.embed_documents(texts)


class LlamaIndex:
    """``VectorStoreIndex`` with ``EmberdEmbedding``, and no language model."""

    name = "LlamaIndex"

    def __init__(self, settings: Settings) -> None:
        """Make an empty index without a request to the server."""
        from llama_index.core import VectorStoreIndex

        from llama_index.embeddings.emberd import EmberdEmbedding

        self._embedding = EmberdEmbedding(model_name=settings.model, engine=settings.engine)
        self._index: Any = VectorStoreIndex(nodes=[], embed_model=self._embedding)

    def add(self, passages: Sequence[Passage]) -> None:
        """Embed passages and add them to the index."""
        from llama_index.core.schema import TextNode

        # Nodes instead of documents: a splitter would download a tokenizer.
        self._index.insert_nodes([TextNode(id_=p.id, text=p.text) for p in passages])

    def search(self, query: str, count: int) -> list[Hit]:
        """Return the ``count`` nearest passages, nearest first."""
        found = self._index.as_retriever(similarity_top_k=count).retrieve(query)
        return [Hit(node.node_id, float(node.score)) for node in found]

    def stored(self, ids: Sequence[str]) -> Floats:
        """Return the vectors that the index holds for ``ids``, ``(len(ids), d)``."""
        return np.array([self._index.vector_store.get(id_) for id_ in ids], np.float32)

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query."""
        return self._embedding.get_query_embedding(text)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the vectors of documents."""
        return self._embedding.get_text_embedding_batch(texts)

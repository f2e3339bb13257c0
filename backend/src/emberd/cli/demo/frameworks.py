"""The two frameworks side by side: the same few things done with each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from emberd.cli.demo.passages import Passage
from emberd.errors import SettingError
from emberd.settings import Settings

if TYPE_CHECKING:
    from emberd.client.vectors import Floats

_INSTALL: Final = "pip install langchain-emberd llama-index-embeddings-emberd"


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that was found, and its cosine with the query."""

    id: str
    score: float


class Framework(Protocol):
    """An index of one framework over emberd's embeddings."""

    name: str

    def add(self, passages: Sequence[Passage]) -> None:
        """Embed passages and put them into the index."""

    def search(self, query: str, count: int) -> list[Hit]:
        """Return the ``count`` nearest passages, the nearest first."""

    def stored(self, ids: Sequence[str]) -> Floats:
        """Return the vectors that the index holds for ``ids``, ``(len(ids), d)``."""

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the vectors of documents."""


def both(settings: Settings) -> tuple[Framework, Framework]:
    """Return an empty index of each framework.

    Raises:
        SettingError: One is not installed.
    """
    try:
        return LangChain(settings), LlamaIndex(settings)
    except ImportError as error:
        raise SettingError(
            f"The demo shows both frameworks, and {error.name or error} is not installed. "
            f"Run: {_INSTALL}"
        ) from error


class LangChain:
    """``InMemoryVectorStore`` over ``EmberdEmbeddings``."""

    name = "LangChain"

    def __init__(self, settings: Settings) -> None:
        """Make an empty index; nothing is asked of the server yet."""
        from langchain_core.vectorstores import InMemoryVectorStore

        from langchain_emberd import EmberdEmbeddings

        self._embeddings = EmberdEmbeddings(model=settings.model, engine=settings.engine)
        self._index = InMemoryVectorStore(self._embeddings)

    def add(self, passages: Sequence[Passage]) -> None:
        """Embed passages and put them into the index."""
        self._index.add_texts([p.text for p in passages], ids=[p.id for p in passages])

    def search(self, query: str, count: int) -> list[Hit]:
        """Return the ``count`` nearest passages, the nearest first."""
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
    """``VectorStoreIndex`` over ``EmberdEmbedding``; there is no language model in it."""

    name = "LlamaIndex"

    def __init__(self, settings: Settings) -> None:
        """Make an empty index; nothing is asked of the server yet."""
        from llama_index.core import VectorStoreIndex

        from llama_index.embeddings.emberd import EmberdEmbedding

        self._embedding = EmberdEmbedding(model_name=settings.model, engine=settings.engine)
        self._index: Any = VectorStoreIndex(nodes=[], embed_model=self._embedding)

    def add(self, passages: Sequence[Passage]) -> None:
        """Embed passages and put them into the index."""
        from llama_index.core.schema import TextNode

        # Nodes and no documents: a splitter would ask the network for its tokenizer.
        self._index.insert_nodes([TextNode(id_=p.id, text=p.text) for p in passages])

    def search(self, query: str, count: int) -> list[Hit]:
        """Return the ``count`` nearest passages, the nearest first."""
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

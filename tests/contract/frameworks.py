"""A common interface to both framework classes, so that one test covers both."""

from __future__ import annotations

from typing import Any, Protocol

from emberd import Embedder
from langchain_emberd import EmberdEmbeddings
from llama_index.embeddings.emberd import EmberdEmbedding


class Framework(Protocol):
    """The methods that tests use; settings have emberd's names."""

    def __init__(self, **settings: Any) -> None: ...

    @property
    def embedder(self) -> Embedder: ...

    def documents(self, texts: list[str]) -> list[list[float]]: ...

    def query(self, text: str) -> list[float]: ...

    async def adocuments(self, texts: list[str]) -> list[list[float]]: ...

    async def aquery(self, text: str) -> list[float]: ...


class LangChain:
    """``EmberdEmbeddings``."""

    def __init__(self, **settings: Any) -> None:
        self.made = EmberdEmbeddings(**_renamed(settings, show_progress="show_progress_bar"))
        self.documents = self.made.embed_documents
        self.query = self.made.embed_query
        self.adocuments = self.made.aembed_documents
        self.aquery = self.made.aembed_query

    @property
    def embedder(self) -> Embedder:
        return self.made.embedder


class LlamaIndex:
    """``EmberdEmbedding``."""

    def __init__(self, **settings: Any) -> None:
        self.made = EmberdEmbedding(
            **_renamed(settings, model="model_name", document_instruction="text_instruction")
        )
        self.documents = self.made.get_text_embedding_batch
        self.query = self.made.get_query_embedding
        self.adocuments = self.made.aget_text_embedding_batch
        self.aquery = self.made.aget_query_embedding

    @property
    def embedder(self) -> Embedder:
        return self.made.embedder


BOTH: tuple[type[LangChain], type[LlamaIndex]] = (LangChain, LlamaIndex)


def _renamed(settings: dict[str, Any], **names: str) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in settings.items()}

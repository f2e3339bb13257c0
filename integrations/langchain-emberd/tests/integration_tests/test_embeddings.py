"""LangChain's own integration suite, on a server of ``emberd/demo`` that the first test starts."""

from __future__ import annotations

from typing import Any

from langchain_tests.integration_tests import EmbeddingsIntegrationTests

from langchain_emberd import EmberdEmbeddings


class TestEmberdEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[EmberdEmbeddings]:
        return EmberdEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "emberd/demo"}

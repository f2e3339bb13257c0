"""LangChain's own unit suite, as it comes: nothing is overridden, nothing is expected to fail."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_tests.unit_tests import EmbeddingsUnitTests

from langchain_emberd import EmberdEmbeddings


@pytest.mark.usefixtures("socket_disabled")
class TestEmberdEmbeddings(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[EmberdEmbeddings]:
        return EmberdEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "emberd/demo"}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return (
            {
                "EMBERD_MODEL": "Qwen/Qwen3-Embedding-0.6B",
                "EMBERD_API_KEY": "made-up-key",
                "EMBERD_BASE_URL": "http://127.0.0.1:30000/v1/",
                "EMBERD_DIMENSIONS": "256",
                "EMBERD_QUERY_INSTRUCTION": "code",
                "EMBERD_IDLE_TIMEOUT": "never",
                "EMBERD_SYMMETRIC": "1",
            },
            {"batch_size": 7},
            {
                "model": "Qwen/Qwen3-Embedding-0.6B",
                "api_key": "made-up-key",
                "base_url": "http://127.0.0.1:30000",
                "dimensions": 256,
                "query_instruction": "code",
                "idle_timeout": None,
                "symmetric": True,
                "batch_size": 7,
            },
        )

"""Both frameworks' suites on the real SGLang, as they run on the demo engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from langchain_tests.integration_tests import EmbeddingsIntegrationTests

from emberd import Embedder
from langchain_emberd import EmberdEmbeddings
from suites.llama_index import LlamaIndexSuite


@pytest.fixture(autouse=True)
def _shared_server(
    embedder: Embedder, shared_home: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let everything find the server that the tests of this folder share."""
    monkeypatch.setenv("EMBERD_HOME", str(shared_home))
    monkeypatch.setenv("EMBERD_ENGINE", "sglang")
    monkeypatch.setenv("EMBERD_DEVICE", "cpu")
    monkeypatch.setenv("EMBERD_MODEL", str(tiny))


class TestLangChainOnSGLang(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[EmberdEmbeddings]:
        return EmberdEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {}

    def test_it_is_the_shared_sglang(self, embedder: Embedder) -> None:
        assert EmberdEmbeddings().endpoint() == embedder.endpoint()
        assert embedder.endpoint().server == "sglang"


class TestLlamaIndexOnSGLang(LlamaIndexSuite):
    @pytest.fixture
    def embedding_params(self) -> dict[str, Any]:
        return {}

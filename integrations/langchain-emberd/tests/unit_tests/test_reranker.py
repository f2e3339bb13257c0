"""langchain-tests has no suite for document compressors: what its unit suites check of a class."""

from __future__ import annotations

import pytest
from langchain_core.documents import BaseDocumentCompressor
from pydantic import SecretStr

from langchain_emberd import EmberdReranker


@pytest.mark.usefixtures("socket_disabled")
def test_init() -> None:
    made = EmberdReranker(top_n=5)
    assert isinstance(made, BaseDocumentCompressor)
    assert made.top_n == 5
    assert made.compress_documents([], "a query") == []


@pytest.mark.usefixtures("socket_disabled")
def test_init_from_env(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBERD_RERANK_MODEL", "Qwen/Qwen3-Reranker-0.6B")
    monkeypatch.setenv("EMBERD_RERANK_API_KEY", "made-up-key")
    monkeypatch.setenv("EMBERD_RERANK_BASE_URL", "http://127.0.0.1:30000/v1/")
    made = EmberdReranker(batch_size=7)
    assert (made.model, made.base_url, made.batch_size) == (
        "Qwen/Qwen3-Reranker-0.6B",
        "http://127.0.0.1:30000",
        7,
    )
    assert made.api_key == SecretStr("made-up-key")

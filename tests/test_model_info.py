"""The length of the vectors and what else is known of a model, without embedding a text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emberd import Embedder, EmberdError, ModelInfo, Reranker, SettingError
from emberd.adapters.sentence_transformers import EmberdSentenceTransformer
from fake_server import MODEL, FakeServer
from langchain_emberd import EmberdEmbeddings, EmberdReranker
from llama_index.embeddings.emberd import EmberdEmbedding
from llama_index.postprocessor.emberd import EmberdRerank

QWEN = "Qwen/Qwen3-Embedding-4B"


class NoManager:
    """Stands for a manager that must not be asked."""

    def __getattr__(self, name: str) -> Any:
        pytest.fail(f"the manager was asked: {name}")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(dimensions=16) as found:
        yield found


def _embedder(model: str | Path, **settings: Any) -> Embedder:
    manager: Any = NoManager()
    return Embedder(model, manager=manager, **settings)


@pytest.mark.parametrize(("given", "expected"), [(None, 2560), (64, 64)])
def test_the_catalog_and_the_setting_tell_the_length(given: int | None, expected: int) -> None:
    embedder = _embedder(QWEN, dimensions=given)
    info = embedder.model_info
    assert (embedder.dimensions, info.dimensions, info.native_dimensions) == (
        expected,
        expected,
        2560,
    )
    assert (info.model, info.task, info.context_tokens) == (QWEN, "embed", 32_768)
    assert info.query_template == embedder.query_template
    assert info.document_template == "{text}"


def test_the_files_of_a_folder_tell_the_length(tmp_path: Path) -> None:
    files = {
        "config.json": {"hidden_size": 96, "max_position_embeddings": 512},
        "config_sentence_transformers.json": {"prompts": {"query": "q: ", "document": ""}},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    embedder = _embedder(tmp_path)
    assert embedder.dimensions == 96
    assert embedder.model_info.query_template == "q: {text}"


def test_a_call_with_other_dimensions_has_its_own_length() -> None:
    embedder = _embedder(QWEN)
    assert embedder.using(dimensions=128).dimensions == 128
    assert embedder.replace(dimensions=256).model_info.dimensions == 256
    assert embedder.dimensions == 2560


def test_a_given_server_tells_the_length_that_nothing_else_does(server: FakeServer) -> None:
    embedder = Embedder(MODEL, base_url=server.url)
    unknown = embedder.model_info
    assert unknown.dimensions is None
    assert server.embedded == []
    assert embedder.dimensions == 16
    asked = len(server.requests)
    assert embedder.dimensions == 16
    assert embedder.model_info == replace(
        unknown, dimensions=16, native_dimensions=16, context_tokens=1000
    )
    assert len(server.requests) == asked


async def test_an_event_loop_learns_it_by_ensure(server: FakeServer) -> None:
    embedder = Embedder(MODEL, base_url=server.url)
    await embedder.aensure()
    asked = len(server.requests)
    assert embedder.dimensions == 16
    assert len(server.requests) == asked
    await embedder.aclose()


def test_a_length_that_only_a_server_tells_starts_none() -> None:
    with pytest.raises(SettingError, match=r"ensure\(\).*dimensions="):
        _ = _embedder(MODEL).dimensions
    assert _embedder(MODEL).model_info.dimensions is None


def test_a_given_server_that_does_not_answer_is_an_error() -> None:
    with pytest.raises(EmberdError):
        _ = Embedder(MODEL, base_url="http://127.0.0.1:9/v1", timeout=1).dimensions


def test_a_reranker_has_no_dimensions() -> None:
    info = Reranker().model_info
    assert info == ModelInfo(
        model="Qwen/Qwen3-Reranker-4B", task="rerank", context_tokens=info.context_tokens
    )
    assert not hasattr(Reranker, "dimensions")


@pytest.mark.parametrize(
    "made",
    [
        lambda: EmberdEmbeddings(model=QWEN),
        lambda: EmberdEmbedding(model_name=QWEN),
        EmberdReranker,
        EmberdRerank,
        lambda: EmberdSentenceTransformer(QWEN),
    ],
    ids=[
        "EmberdEmbeddings",
        "EmberdEmbedding",
        "EmberdReranker",
        "EmberdRerank",
        "EmberdSentenceTransformer",
    ],
)
def test_the_classes_of_the_frameworks_have_it(made: Any) -> None:
    info = made().model_info
    wanted = (QWEN, 2560) if info.task == "embed" else ("Qwen/Qwen3-Reranker-4B", None)
    assert (info.model, info.dimensions) == wanted


def test_the_length_of_cut_vectors_is_that_of_a_sentence_transformer() -> None:
    model = EmberdSentenceTransformer(QWEN, truncate_dim=64)
    info = model.model_info
    assert (model.dimensions, info.dimensions, info.native_dimensions) == (64, 64, 2560)
    with model.truncate_embeddings(4000):
        assert model.dimensions == model.model_info.dimensions == 2560
    assert EmberdSentenceTransformer(MODEL, truncate_dim=64).model_info.dimensions is None

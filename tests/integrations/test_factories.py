"""Embeddings that a text or a dictionary names, in both frameworks."""

from __future__ import annotations

import sys

import pytest
from langchain_openai import OpenAIEmbeddings
from llama_index.core import Settings
from llama_index.core import embeddings as core_embeddings
from llama_index.core.callbacks import CallbackManager
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.embeddings import loading as core_loading
from pydantic import ValidationError

from emberd import DEFAULT_MODEL
from langchain_emberd import EmberdEmbeddings, init_embeddings
from llama_index.embeddings.emberd import EmberdEmbedding, load_embed_model, resolve_embed_model

_MODEL = "Qwen/Qwen3-Embedding-0.6B"


@pytest.mark.parametrize("named", [f"emberd:{_MODEL}", f" Emberd : {_MODEL} "])
def test_a_text_names_the_model(named: str) -> None:
    found = init_embeddings(named, dimensions=64)
    assert found == EmberdEmbeddings(model=_MODEL, dimensions=64)


def test_the_provider_can_be_an_argument_and_the_model_the_default() -> None:
    assert init_embeddings(_MODEL, provider="emberd") == EmberdEmbeddings(model=_MODEL)
    assert init_embeddings("emberd:") == EmberdEmbeddings(model=DEFAULT_MODEL)
    with pytest.raises(ValidationError, match="spacing"):
        init_embeddings("emberd:", spacing=1)


def test_other_providers_are_those_of_langchain(monkeypatch: pytest.MonkeyPatch) -> None:
    found = init_embeddings("openai:text-embedding-3-small", api_key="a-key")
    assert isinstance(found, OpenAIEmbeddings)
    with pytest.raises(ValueError, match="nowhere"):
        init_embeddings("nowhere:a-model")
    for package in ("langchain", "langchain_classic"):
        monkeypatch.setitem(sys.modules, f"{package}.embeddings", None)
    with pytest.raises(ImportError, match="pip install langchain"):
        init_embeddings("openai:text-embedding-3-small", api_key="a-key")


@pytest.mark.parametrize("named", [f"emberd:{_MODEL}", f" Emberd : {_MODEL} "])
def test_llama_index_resolves_a_text(named: str) -> None:
    manager = CallbackManager([])
    found = resolve_embed_model(named, manager, dimensions=64)
    assert found == EmberdEmbedding(model_name=_MODEL, dimensions=64, callback_manager=manager)
    assert found.callback_manager is manager
    assert resolve_embed_model("emberd:").model_name == DEFAULT_MODEL
    assert resolve_embed_model("emberd:").callback_manager is Settings.callback_manager
    with pytest.raises(ValidationError, match="spacing"):
        resolve_embed_model("emberd:", spacing=1)
    with pytest.raises(TypeError, match="model_name"):
        resolve_embed_model(named, model_name=DEFAULT_MODEL)


def test_llama_index_resolves_everything_else_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    made = EmberdEmbedding(model_name=_MODEL)
    assert resolve_embed_model(made) is made
    monkeypatch.setenv("IS_TESTING", "1")
    assert isinstance(resolve_embed_model("default"), MockEmbedding)
    with pytest.raises((ValueError, ImportError)):
        resolve_embed_model("nowhere:a-model")
    with pytest.raises(TypeError, match="dimensions"):
        resolve_embed_model(made, dimensions=64)


def test_llama_index_loads_a_dictionary() -> None:
    made = EmberdEmbedding(model_name=_MODEL, dimensions=64, query_instruction="code")
    assert load_embed_model(made.to_dict()) == made
    mock = MockEmbedding(embed_dim=3)
    assert load_embed_model(mock.to_dict()).to_dict() == mock.to_dict()
    with pytest.raises(ValueError, match="Nowhere"):
        load_embed_model({"class_name": "Nowhere"})


def test_llama_index_itself_knows_neither_the_text_nor_the_class() -> None:
    """If this fails, the functions of this package and its documentation can go."""
    with pytest.raises(ValueError, match="EmberdEmbedding"):
        core_loading.load_embed_model(EmberdEmbedding(model_name=_MODEL).to_dict())
    with pytest.raises((ValueError, ImportError)):
        core_embeddings.resolve_embed_model(f"emberd:{_MODEL}")

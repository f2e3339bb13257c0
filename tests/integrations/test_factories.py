"""Embeddings that a text or a dictionary names, in both frameworks."""

from __future__ import annotations

import sys

import pytest
from langchain_openai import OpenAIEmbeddings
from llama_index.core.embeddings import resolve_embed_model
from llama_index.core.embeddings.loading import RECOGNIZED_EMBEDDINGS, load_embed_model
from pydantic import ValidationError

from emberd import DEFAULT_MODEL
from langchain_emberd import EmberdEmbeddings, init_embeddings
from llama_index.embeddings.emberd import EmberdEmbedding

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


def test_llama_index_takes_an_object_and_loads_a_dictionary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = EmberdEmbedding(model_name=_MODEL, dimensions=64)
    assert resolve_embed_model(made) is made
    assert EmberdEmbedding.from_dict(made.to_dict()) == made
    # As docs/integrations.md says: LlamaIndex knows only classes in this dictionary.
    monkeypatch.setitem(RECOGNIZED_EMBEDDINGS, EmberdEmbedding.class_name(), EmberdEmbedding)
    assert load_embed_model(made.to_dict()) == made

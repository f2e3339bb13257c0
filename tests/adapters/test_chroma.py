"""Chroma's embedding function."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chromadb.utils.embedding_functions import known_embedding_functions

from adapters import page
from adapters.conftest import InNewProcess
from agents.recipes import BOATS, BREAD, QUESTION, Sent
from emberd import Embedder, IdentityError, SettingError, guarded
from emberd.adapters.chroma import EmberdEmbeddingFunction
from managed import MODEL

_NAME = "passages"
_REOPEN = f"""
import chromadb, emberd.adapters.chroma
collection = chromadb.PersistentClient("chroma").get_collection({_NAME!r})
collection.add(ids=["3"], documents=["Bo pays taxes."])
found = collection.query(query_texts=[{QUESTION!r}], n_results=1)
print(found["documents"][0][0], collection.configuration["embedding_function"].identity)
"""


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Any]:
    found = chromadb.PersistentClient(tmp_path / "chroma")
    yield found
    found.close()


def _filled(client: Any, function: EmberdEmbeddingFunction, **more: Any) -> Any:
    collection = client.create_collection(_NAME, embedding_function=function, **more)
    collection.add(ids=["1", "2"], documents=[BREAD, BOATS])
    return collection


def _found(collection: Any) -> str:
    found: str = collection.query(query_texts=[QUESTION], n_results=1)["documents"][0][0]
    return found


def test_documents_and_queries_get_the_templates_of_their_roles(client: Any, sent: Sent) -> None:
    collection = _filled(client, EmberdEmbeddingFunction(MODEL))
    assert _found(collection) == BREAD
    assert sent()[-3:] == [f"passage: {BREAD}", f"passage: {BOATS}", f"query: {QUESTION}"]


def test_a_collection_compares_by_cosine_and_has_emberds_vectors(client: Any) -> None:
    collection = _filled(client, EmberdEmbeddingFunction(MODEL))
    assert collection.configuration["hnsw"]["space"] == "cosine"
    kept = collection.get(ids=["1"], include=["embeddings"])["embeddings"]
    assert np.allclose(kept, Embedder(MODEL).embed_documents([BREAD]), atol=1e-6)


def test_a_new_process_gets_the_function_of_the_collection(
    client: Any, in_new_process: InNewProcess
) -> None:
    """Also if its environment says something else."""
    function = EmberdEmbeddingFunction(MODEL, dimensions=128, query_instruction="ask: {text}")
    _filled(client, function)
    client.close()
    printed = in_new_process(
        _REOPEN,
        EMBERD_MODEL="other/model",
        EMBERD_DIMENSIONS="64",
        EMBERD_QUERY_INSTRUCTION="",
        EMBERD_REVISION="main",
        EMBERD_QUANTIZATION="fp8",
        EMBERD_SYMMETRIC="1",
        EMBERD_TRUNCATE="1",
    )
    assert printed == f"{BREAD} {function.identity}\n"


def test_a_collection_that_is_opened_again_gets_the_templates_too(client: Any, sent: Sent) -> None:
    _filled(client, EmberdEmbeddingFunction(MODEL))
    sent()
    again = client.get_collection(_NAME)
    again.add(ids=["3"], documents=["Bo pays taxes."])
    assert _found(again) == BREAD
    assert sent()[-2:] == ["passage: Bo pays taxes.", f"query: {QUESTION}"]


def test_a_configuration_has_what_was_given_and_no_key() -> None:
    function = EmberdEmbeddingFunction(
        MODEL, base_url="http://127.0.0.1:9", api_key="a-secret", batch_size=8
    )
    config = function.get_config()
    assert "a-secret" not in repr(config)
    assert (config["base_url"], config["batch_size"]) == ("http://127.0.0.1:9", 8)
    again = EmberdEmbeddingFunction.build_from_config(config)
    assert again.get_config() == config
    assert again.embedder.settings.base_url == "http://127.0.0.1:9"
    assert not function.is_legacy()


def test_a_configuration_of_other_vectors_is_refused() -> None:
    one, other = EmberdEmbeddingFunction(MODEL), EmberdEmbeddingFunction(MODEL, dimensions=64)
    with pytest.raises(IdentityError):
        other.validate_config_update(one.get_config(), other.get_config())
    one.validate_config_update(one.get_config(), {**one.get_config(), "batch_size": 8})
    with pytest.raises(IdentityError):
        EmberdEmbeddingFunction.build_from_config({**one.get_config(), "dimensions": 64})
    EmberdEmbeddingFunction.validate_config(one.get_config())
    for config in ({}, {**one.get_config(), "spacing": 1}):
        with pytest.raises(SettingError):
            EmberdEmbeddingFunction.validate_config(config)


def test_the_name_is_registered() -> None:
    assert known_embedding_functions["emberd"] is EmberdEmbeddingFunction
    assert EmberdEmbeddingFunction.name() == "emberd"
    function = EmberdEmbeddingFunction(Embedder(MODEL, dimensions=64))
    assert function.default_space() in function.supported_spaces()
    assert function.get_config()["dimensions"] == 64
    assert function.dimensions == function.model_info.dimensions == 64


def test_the_code_of_the_page_finds_the_document(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    made = page.run("Chroma", monkeypatch)
    made["client"].close()
    assert made["found"]["documents"] == [["Zinc ..."]]


def test_guarded_compares_a_function_that_is_passed(client: Any) -> None:
    function = EmberdEmbeddingFunction(MODEL)
    collection = client.create_collection(_NAME, embedding_function=function)
    assert guarded(collection, function, at=(client, _NAME)) is collection
    other = EmberdEmbeddingFunction(MODEL, query_instruction="ask: {text}")
    again = client.get_collection(_NAME, embedding_function=other)
    with pytest.raises(IdentityError):
        guarded(again, other, at=(client, _NAME))

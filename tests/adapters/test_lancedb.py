"""LanceDB's registry of embedding functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest
from lancedb.embeddings import get_registry
from lancedb.pydantic import LanceModel, Vector

from adapters import page
from adapters.conftest import InNewProcess
from agents.recipes import BOATS, BREAD, QUESTION, Sent
from emberd import Embedder, IdentityError, TextError
from emberd.adapters.lancedb import EmberdTextEmbedding
from fake_server import QWEN, FakeServer
from managed import MODEL

_REOPEN = f"""
import lancedb, emberd.adapters.lancedb
table = lancedb.connect("lance").open_table("passages")
table.add([{{"text": "Bo pays taxes."}}])
print(table.search({QUESTION!r}).limit(1).to_list()[0]["text"])
print(table.embedding_functions["vector"].function.embedder.identity)
"""


def _function(**settings: Any) -> Any:
    return get_registry().get("emberd").create(**settings)


def _filled(folder: Path, function: Any) -> Any:
    class Passage(LanceModel):
        text: str = function.SourceField()
        vector: Vector(function.ndims()) = function.VectorField()  # type: ignore[valid-type]

    table = lancedb.connect(folder / "lance").create_table("passages", schema=Passage)
    table.add([{"text": BREAD}, {"text": BOATS}])
    return table


def _found(table: Any) -> str:
    found: str = table.search(QUESTION).limit(1).to_list()[0]["text"]
    return found


def test_the_source_column_and_queries_get_their_templates(tmp_path: Path, sent: Sent) -> None:
    table = _filled(tmp_path, _function(model=MODEL))
    assert _found(table) == BREAD
    assert sent()[-3:] == [f"passage: {BREAD}", f"passage: {BOATS}", f"query: {QUESTION}"]


def test_the_server_is_verified_once_for_all_functions_of_a_table(tmp_path: Path) -> None:
    """LanceDB makes the function again whenever texts are added."""
    with FakeServer(model=QWEN, dimensions=1024) as server:
        table = _filled(tmp_path, _function(model=QWEN, base_url=server.url))
        before = len(server.requests)
        for number in range(3):
            table.add([{"text": f"text {number}"}])
        assert [each.path for each in server.requests[before:]] == ["/v1/embeddings"] * 3


def test_the_length_is_known_without_a_server() -> None:
    function = _function(model="Qwen/Qwen3-Embedding-4B", base_url="http://127.0.0.1:9")
    assert function.ndims() == function.dimensions == function.model_info.dimensions == 2560
    assert _function(model="Qwen/Qwen3-Embedding-4B", dimensions=64).ndims() == 64


def test_a_new_process_gets_the_function_of_the_table(
    tmp_path: Path, in_new_process: InNewProcess
) -> None:
    """Also if its environment says something else."""
    function = _function(model=MODEL, dimensions=128, query_instruction="ask: {text}")
    _filled(tmp_path, function)
    printed = in_new_process(
        _REOPEN, EMBERD_MODEL="other/model", EMBERD_DIMENSIONS="64", EMBERD_QUERY_INSTRUCTION=""
    )
    assert printed.splitlines() == [BREAD, function.embedder.identity]


def test_a_table_keeps_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="api_key"):
        _function(model=MODEL, api_key="a-secret")
    registry = get_registry()
    registry.set_var("key", "a-secret")
    function = _function(model=MODEL, base_url="http://127.0.0.1:9", api_key="$var:key")
    assert function.embedder.settings.api_key == "a-secret"
    kept = function.safe_model_dump()
    assert (kept["api_key"], kept["base_url"]) == ("$var:key", "http://127.0.0.1:9")
    assert registry.get("emberd").create(**kept) == function


def test_what_a_table_kept_must_give_the_same_vectors() -> None:
    kept = _function(model=MODEL).safe_model_dump()
    with pytest.raises(IdentityError):
        _function(**{**kept, "dimensions": 64})


def test_a_null_has_no_vector_and_others_are_those_of_emberd() -> None:
    one, none, other = _function(model=MODEL).compute_source_embeddings_with_retry(
        [BREAD, None, BOATS]
    )
    assert none is None
    assert np.allclose([one, other], Embedder(MODEL).embed_documents([BREAD, BOATS]), atol=1e-6)


def test_an_error_of_a_text_is_raised_as_it_is_and_at_once() -> None:
    with pytest.raises(TextError) as caught:
        _function(model=MODEL).compute_source_embeddings_with_retry([BREAD, 7])
    assert caught.value.index == 1


def test_functions_are_equal_if_their_vectors_are() -> None:
    one = EmberdTextEmbedding(model=MODEL)
    assert one == EmberdTextEmbedding(model=MODEL) != EmberdTextEmbedding(model=MODEL, dimensions=8)
    assert hash(one) == hash(EmberdTextEmbedding(model=MODEL))


def test_the_code_of_the_page_finds_the_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (found,) = page.run("LanceDB", monkeypatch)["found"]
    assert found["text"] == "Zinc ..."

"""Copies with a change, and objects over an embedder: the environment has no say in them."""

from __future__ import annotations

import pickle
from typing import Any

import openai
import pytest
from pydantic import ValidationError

from emberd import Embedder
from fake_server import QWEN, FakeServer, vector_of
from langchain_emberd import EmberdEmbeddings
from llama_index.embeddings.emberd import EmberdEmbedding
from managed import same

both = pytest.mark.parametrize("kind", [EmberdEmbeddings, EmberdEmbedding])


@both
@pytest.mark.parametrize("unpickled", [False, True])
def test_what_a_copy_does_not_change_stays_whatever_the_environment_says_now(
    kind: Any, unpickled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = kind(dimensions=1024)
    monkeypatch.setenv("EMBERD_DIMENSIONS", "64")
    monkeypatch.setenv("EMBERD_QUERY_INSTRUCTION", "code")
    monkeypatch.setenv("EMBERD_MODEL", "emberd/demo")
    if unpickled:
        made = pickle.loads(pickle.dumps(made))
    assert made.model_copy(update={"truncate": True}).identity == made.identity
    native = made.model_copy(update={"dimensions": None})
    assert (native.dimensions, native.embedder.settings.dimensions) == (None, None)


@both
def test_an_object_over_an_embedder_uses_its_client_and_so_does_a_copy(kind: Any) -> None:
    """As behind a proxy that wants headers of the user's own."""
    with FakeServer(model=QWEN, dimensions=1024) as server:
        client = openai.OpenAI(
            base_url=f"{server.url}/v1", api_key="k", default_headers={"X-Team": "search"}
        )
        made = kind.from_embedder(Embedder(QWEN, client=client, query_instruction=""))
        ask = getattr(made, "embed_query", None) or made.get_query_embedding
        assert same(ask("a"), vector_of("a", 1024))
        assert made.query_instruction == ""
        again = made.model_copy(update={"query_instruction": "<{text}>"})
        ask = getattr(again, "embed_query", None) or again.get_query_embedding
        assert same(ask("a"), vector_of("<a>", 1024))
        assert {request.headers.get("x-team") for request in server.requests} == {"search"}
        client.close()


@both
def test_a_setting_beside_an_embedder_is_refused_and_not_ignored(kind: Any) -> None:
    with pytest.raises(ValidationError, match="dimensions is given together with an Embedder"):
        kind.from_embedder(Embedder(QWEN), dimensions=64)
    with pytest.raises(ValidationError, match="'http://h' is not an emberd.Embedder"):
        kind.from_embedder("http://h")

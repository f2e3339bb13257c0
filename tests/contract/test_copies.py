"""Modified copies, and objects from an embedder, do not depend on the environment."""

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
def test_copy_keeps_other_settings_when_the_environment_changes(
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
def test_object_from_an_embedder_and_its_copy_use_its_client(kind: Any) -> None:
    """As with a proxy that requires custom headers."""
    with FakeServer(model=QWEN, dimensions=1024) as server:
        client = openai.OpenAI(
            base_url=f"{server.url}/v1", api_key="k", default_headers={"X-Team": "search"}
        )
        made = kind.from_embedder(Embedder(QWEN, client=client, query_instruction=""))
        embed = getattr(made, "embed_query", None) or made.get_query_embedding
        assert same(embed("a"), vector_of("a", 1024))
        assert made.query_instruction == ""
        copy = made.model_copy(update={"query_instruction": "<{text}>"})
        embed = getattr(copy, "embed_query", None) or copy.get_query_embedding
        assert same(embed("a"), vector_of("<a>", 1024))
        assert {request.headers.get("x-team") for request in server.requests} == {"search"}
        client.close()


@both
def test_setting_together_with_an_embedder_is_an_error(kind: Any) -> None:
    with pytest.raises(ValidationError, match="dimensions is given together with an"):
        kind.from_embedder(Embedder(QWEN), dimensions=64)
    with pytest.raises(ValidationError, match="'http://h' is not an emberd.Embedder"):
        kind.from_embedder("http://h")

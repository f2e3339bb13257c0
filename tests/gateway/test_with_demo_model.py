"""The openai SDK and curl against the gateway with the model emberd/demo, as users have it."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest

import emberd
import managed
from gateways import Running, serving

QUERY = "Why is the Baltic almost fresh water?"
PASSAGES = list(managed.PASSAGES.values())

stopped_at_the_end = managed.stopped_at_the_end


@pytest.fixture(scope="module")
def own(managed_home: Path) -> Iterator[Running]:
    with serving(managed_home, "emberd/demo") as running:
        yield running


@pytest.fixture(scope="module")
def embedder() -> Iterator[emberd.Embedder]:
    embedder = emberd.Embedder(managed.MODEL)
    yield embedder
    embedder.close()


def _sdk(own: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{own.url}/v1", api_key=own.key, max_retries=0)


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_the_sdk_gets_the_vectors_of_the_classes(
    own: Running, embedder: emberd.Embedder, encoding: str | None
) -> None:
    form = openai.omit if encoding is None else encoding
    with _sdk(own) as client:
        documents = client.embeddings.create(model="demo", input=PASSAGES, encoding_format=form)  # type: ignore[arg-type]
        query = client.embeddings.create(model="demo:query", input=QUERY, encoding_format=form)  # type: ignore[arg-type]
    rows = [_row(item.embedding) for item in documents.data]
    assert managed.same(rows, embedder.embed_documents(PASSAGES))
    assert managed.same(_row(query.data[0].embedding), embedder.embed_query(QUERY))
    assert documents.usage.prompt_tokens > len(PASSAGES)


def test_the_classes_get_the_same_vectors_through_it(
    own: Running, embedder: emberd.Embedder
) -> None:
    """Both have templates, and a text gets one only once."""
    through = emberd.Embedder(managed.MODEL, base_url=f"{own.url}/v1", api_key=own.key)
    assert managed.same(through.embed_documents(PASSAGES), embedder.embed_documents(PASSAGES))
    assert managed.same(through.embed_query(QUERY), embedder.embed_query(QUERY))
    through.close()


def _row(given: object) -> object:
    return np.frombuffer(base64.b64decode(given), "<f4") if isinstance(given, str) else given


async def test_the_asynchronous_sdk_over_the_unix_socket(
    own: Running, embedder: emberd.Embedder
) -> None:
    transport = httpx2.AsyncHTTPTransport(uds=str(own.socket))
    async with (
        httpx2.AsyncClient(transport=transport) as http,
        openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=http) as sdk,
    ):
        models = [model.id async for model in sdk.models.list()]
        reply = await sdk.embeddings.create(model="emberd/demo:query", input=[QUERY])
    assert models == ["demo", "demo:query", "demo:document"]
    assert managed.same(reply.data[0].embedding, embedder.embed_query(QUERY))


def test_frameworks_that_take_a_url_and_a_name_embed_queries_with_a_name_of_their_own(
    own: Running, embedder: emberd.Embedder
) -> None:
    from langchain_openai import OpenAIEmbeddings
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    documents, query = embedder.embed_documents(PASSAGES), embedder.embed_query(QUERY)
    with httpx2.Client(trust_env=False) as http:
        common: dict[str, Any] = {"api_key": own.key, "http_client": http}

        def langchain(model: str) -> OpenAIEmbeddings:
            given: dict[str, Any] = {"model": model, "base_url": f"{own.url}/v1", **common}
            return OpenAIEmbeddings(**given, check_embedding_ctx_length=False)

        def llama_index(model: str) -> OpenAILikeEmbedding:
            return OpenAILikeEmbedding(model_name=model, api_base=f"{own.url}/v1", **common)

        assert managed.same(langchain("demo").embed_documents(PASSAGES), documents)
        assert managed.same(langchain("demo:query").embed_query(QUERY), query)
        assert managed.same(llama_index("demo").get_text_embedding_batch(PASSAGES), documents)
        assert managed.same(llama_index("demo:query").get_query_embedding(QUERY), query)


def test_errors_are_those_that_the_sdk_has_classes_for(own: Running) -> None:
    with _sdk(own) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            client.embeddings.create(model="text-embedding-3-small", input="a")
        with pytest.raises(openai.BadRequestError) as too_long:
            client.embeddings.create(model="demo", input="word " * 2000)
    assert missing.value.code == "model_not_found"
    assert too_long.value.code == "context_length_exceeded"
    with openai.OpenAI(base_url=f"{own.url}/v1", api_key="wrong", max_retries=0) as other:
        with pytest.raises(openai.AuthenticationError):
            other.models.list()


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl_over_the_unix_socket(own: Running, embedder: emberd.Embedder) -> None:
    done = subprocess.run(
        [
            *("curl", "--silent", "--fail", "--unix-socket", str(own.socket)),
            *("http://localhost/v1/embeddings", "--json"),
            json.dumps({"model": "demo:query", "input": QUERY}),
        ],
        capture_output=True,
        check=True,
        timeout=60,
    )
    row = json.loads(done.stdout)["data"][0]["embedding"]
    assert managed.same(row, embedder.embed_query(QUERY))


def test_a_server_that_stopped_is_started_by_the_next_request(
    own: Running, embedder: emberd.Embedder
) -> None:
    before = own.post(model="demo", input="a").json()["data"]
    first = managed.live_servers()
    emberd.Manager().stop()
    assert managed.live_servers() == []
    assert own.post(model="demo", input="a").json()["data"] == before
    assert managed.live_servers() != first

"""Another encoder behind the same routes: one that shows its tokens, one that fails."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest

import waiting
from emberd.serving.routes import create_app
from emberd.serving.service import Phase, ServedModel, Service
from fake_encoder import FakeEncoder, FakeTokenEncoder


@contextlib.asynccontextmanager
async def asking(encoder: FakeEncoder) -> AsyncIterator[httpx.AsyncClient]:
    """Serve ``encoder`` without a socket."""
    service = Service(encoder, ServedModel("test/fake"))
    transport = httpx.ASGITransport(create_app(service, None))
    async with (
        service.running(),
        httpx.AsyncClient(transport=transport, base_url="http://test", trust_env=False) as client,
    ):
        await asyncio.to_thread(waiting.until, lambda: service.phase is not Phase.LOADING)
        yield client


async def test_token_ids_give_the_vector_of_their_text() -> None:
    encoder = FakeTokenEncoder()
    async with asking(encoder) as client:
        one = await client.post("/v1/embeddings", json={"input": [104, 105]})
        many = await client.post("/v1/embeddings", json={"input": [[104, 105], [104]]})
    assert one.json()["data"][0]["embedding"] == encoder.vector("hi").tolist()
    assert [item["embedding"] for item in many.json()["data"]] == [
        encoder.vector("hi").tolist(),
        encoder.vector("h").tolist(),
    ]
    assert (one.json()["usage"]["prompt_tokens"], many.json()["usage"]["prompt_tokens"]) == (2, 3)


async def test_token_ids_outside_the_vocabulary_are_a_400() -> None:
    async with asking(FakeTokenEncoder()) as client:
        reply = await client.post("/v1/embeddings", json={"input": [104, 2_000_000]})
    assert (reply.status_code, reply.json()["message"]) == (
        400,
        "Token ID 2000000 is not in the vocabulary",
    )


async def test_as_many_token_ids_as_the_context_are_a_400() -> None:
    async with asking(FakeTokenEncoder()) as client:
        fits = await client.post("/v1/embeddings", json={"input": [104] * 99})
        over = await client.post("/v1/embeddings", json={"input": [104] * 100})
    assert (fits.status_code, over.status_code) == (200, 400)


async def test_tokenize_gives_ids_count_and_limit() -> None:
    async with asking(FakeTokenEncoder()) as client:
        one = await client.post("/v1/tokenize", json={"prompt": "hi"})
        many = await client.post("/v1/tokenize", json={"prompt": ["hi", "h"]})
        bare = await client.post("/v1/tokenize", json={"prompt": "hi", "add_special_tokens": False})
        wrong = await client.post("/v1/tokenize", json={"prompt": 3})
    assert one.json() == {"tokens": [104, 105, 0], "count": 3, "max_model_len": 100}
    assert many.json()["tokens"] == [[104, 105, 0], [104, 0]]
    assert many.json()["count"] == [3, 2]
    assert bare.json()["tokens"] == [104, 105]
    assert wrong.status_code == 400


async def test_encoder_error_is_a_500_without_the_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    encoder = FakeEncoder()
    async with asking(encoder) as client:
        encoder.fatal = {"secret"}
        with caplog.at_level(logging.INFO, "emberd.serving"):
            reply = await client.post("/v1/embeddings", json={"input": "secret"})
        health = await client.get("/health")
    assert (reply.status_code, reply.json()["message"]) == (500, "Internal server error")
    assert "MemoryError" in caplog.text
    assert "secret" not in caplog.text
    assert health.status_code == 200


async def test_health_is_503_when_the_encoder_fails_and_ready_is_not() -> None:
    encoder = FakeEncoder()
    async with asking(encoder) as client:
        encoder.bad = {"ready"}
        health, ready = await client.get("/health"), await client.get("/ready")
    assert (health.status_code, ready.status_code) == (503, 200)


async def test_model_with_an_invalid_first_vector_never_becomes_ready() -> None:
    encoder = FakeEncoder()
    encoder.bad = {"ready"}
    async with asking(encoder) as client:
        ready, reply = await client.get("/ready"), await client.post("/v1/embeddings", json={})
    assert (ready.status_code, reply.status_code) == (503, 503)


async def test_dimensions_are_cut() -> None:
    async with asking(FakeEncoder()) as client:
        served = await client.post("/v1/embeddings", json={"input": "a", "dimensions": 4})
    assert len(served.json()["data"][0]["embedding"]) == 4


async def test_vector_with_norm_zero_after_the_cut_is_a_500() -> None:
    encoder = FakeEncoder()
    encoder.vector = lambda text: np.eye(8, dtype=np.float32)[7]  # type: ignore[method-assign]
    async with asking(encoder) as client:
        reply = await client.post("/v1/embeddings", json={"input": "a", "dimensions": 4})
    assert reply.status_code == 500


async def test_base64_is_little_endian_float32() -> None:
    encoder = FakeEncoder()
    async with asking(encoder) as client:
        reply = await client.post(
            "/v1/embeddings", json={"input": "a", "encoding_format": "base64"}
        )
    raw = base64.b64decode(reply.json()["data"][0]["embedding"])
    np.testing.assert_array_equal(np.frombuffer(raw, "<f4"), encoder.vector("a"))

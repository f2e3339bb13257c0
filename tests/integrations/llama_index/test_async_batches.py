"""What LlamaIndex's asynchronous batches still do, which an embedding has no say in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from llama_index.core.rate_limiter import TokenBucketRateLimiter
from llama_index.core.storage.kvstore import SimpleKVStore

from emberd import RejectedError
from fake_server import QWEN, FakeServer, vectors_of
from llama_index.embeddings.emberd import EmberdEmbedding
from managed import same

_DIMENSIONS = 1024  # of Qwen3-Embedding-0.6B
_TEXTS = [f"text {number}" for number in range(40)]


class Counted(TokenBucketRateLimiter):
    """Lets everybody pass, and counts them."""

    passed: int = 0

    async def async_acquire(self, num_tokens: int = 0) -> None:
        self.passed += 1


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(model=QWEN, dimensions=_DIMENSIONS) as running:
        yield running


async def test_the_siblings_of_a_failed_slice_go_on_to_their_end_and_leave_nothing(
    server: FakeServer,
) -> None:
    """LlamaIndex gathers its slices and cancels none; no more than the bound are in flight."""
    embedding = EmberdEmbedding(
        model_name=QWEN, base_url=server.url, embed_batch_size=2, max_concurrency=2
    )
    await embedding.embedder.aensure()
    server.requests.clear()
    server.refuses = _TEXTS[1]
    server.most_in_flight, server.latency_s = 0, 0.01
    with pytest.raises(RejectedError):
        await embedding.aget_text_embedding_batch(_TEXTS)
    siblings = asyncio.all_tasks() - {asyncio.current_task()}
    assert siblings, "nothing cancels them"
    await asyncio.wait(siblings)
    assert {text for inputs in server.embedded for text in inputs} == set(_TEXTS)
    assert server.most_in_flight <= 2
    server.refuses = None
    again = await embedding.aget_text_embedding_batch(_TEXTS)
    assert same(again, vectors_of(_TEXTS, _DIMENSIONS))


@pytest.mark.parametrize("cached", [False, True])
async def test_a_rate_limiter_is_asked_for_each_slice_unless_there_is_a_cache(
    server: FakeServer, cached: bool
) -> None:
    limiter = Counted(requests_per_minute=1)
    embedding = EmberdEmbedding(
        model_name=QWEN,
        base_url=server.url,
        embed_batch_size=4,
        rate_limiter=limiter,
        embeddings_cache=SimpleKVStore() if cached else None,
    )
    await embedding.aget_text_embedding_batch(_TEXTS)
    assert limiter.passed == (0 if cached else len(_TEXTS) / 4)

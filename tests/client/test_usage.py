"""How many tokens calls used."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from emberd import Embedder
from emberd.client import usage
from fake_server import MODEL, FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(latency_s=0.05) as running:
        yield running


def test_tokens_are_counted_in_the_block_only(server: FakeServer) -> None:
    embedder = Embedder(MODEL, base_url=server.url, batch_size=2)
    embedder.embed_query("before")
    with usage.counted() as used:
        embedder.embed_documents(["a", "bc", "def"])
        with usage.counted() as inner:
            embedder.embed_query("four")
    embedder.embed_query("after")
    assert (used.tokens, inner.tokens) == (2 + 3 + 4, 5)


async def test_calls_that_share_requests_share_their_tokens(server: FakeServer) -> None:
    embedder = Embedder(MODEL, base_url=server.url)
    await embedder.aembed_query("warm")
    before = len(server.embedded)

    async def tokens(number: int) -> int:
        with usage.counted() as used:
            await embedder.aembed_query("x" * number)
        return used.tokens

    found = await asyncio.gather(*(tokens(number) for number in range(1, 41)))
    assert len(server.embedded) - before < 40
    assert sum(found) == sum(number + 1 for number in range(1, 41))
    assert all(found)


@pytest.mark.parametrize(
    ("total", "sizes", "parts"),
    [
        (10, [1, 1], [5, 5]),
        (10, [1, 2, 4], [1, 3, 6]),
        (3, [0, 0], [0, 3]),
        (0, [3, 4], [0, 0]),
        (None, [3, 4], [None, None]),
        (7, [5], [7]),
    ],
)
def test_a_total_is_divided_without_a_rest(
    total: int | None, sizes: list[int], parts: list[int | None]
) -> None:
    assert usage.divide(total, sizes) == parts

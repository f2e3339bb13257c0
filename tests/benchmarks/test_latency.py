"""What one query costs on a server that answers at once, beside the bare openai SDK.

All take turns, call by call, over connections that are kept. ``make bench`` prints the figures.
Nothing here asserts a time.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from typing import Any, Final

import numpy as np
import pytest

from benchmarks import rivals
from benchmarks.record import Ratio, Row, Table, in_turn, publish
from canned_server import MODEL, canned_server, expected
from emberd import Embedder
from langchain_emberd import EmberdEmbeddings
from llama_index.embeddings.emberd import EmberdEmbedding

CALLS: Final = 1000
TEXT: Final = "Why is the Baltic almost fresh water?"
MOST_MS: Final = 0.3
MS: Final = 1000
CLOSE: Final = 1e-6
SECONDS: Final = 300
SDK: Final = "openai SDK, bare"
NO_INSTRUCTION: Final = ""  # rivals add none, so all send the same text

AsyncWay = Callable[[], Awaitable[Any]]


def rows_of(times: dict[str, list[float]]) -> list[Row]:
    """Return milliseconds a call, one row a way."""
    rows = []
    for name, taken in times.items():
        ordered = sorted(MS * seconds for seconds in taken)
        median, p95 = statistics.median(ordered), ordered[int(0.95 * len(ordered))]
        rows.append(Row(name, {"min": ordered[0], "median": median, "p95": p95}))
    return rows


def ratios_of(rows: Sequence[Row]) -> list[Ratio]:
    """Return how much longer each of our classes takes than the SDK."""
    medians = {row.name: row.figures["median"] for row in rows}
    return [
        Ratio(f"{name} beside the SDK", median - medians[SDK], MOST_MS, at_most=True, unit=" ms")
        for name, median in medians.items()
        if name.startswith(("Embedder", "Emberd"))
    ]


def table(name: str, where: str, times: dict[str, list[float]]) -> Table:
    """Return what was found."""
    rows = rows_of(times)
    return Table(
        name=name,
        title=f"ms for one query {where}, {CALLS:,} of each in turn, a server that answers at once",
        rows=rows,
        ratios=ratios_of(rows),
        packages=rivals.PACKAGES,
    )


@pytest.mark.timeout(SECONDS)
def test_ms_for_one_query() -> None:
    with ExitStack() as stack:
        url = stack.enter_context(canned_server())
        place = rivals.Place(f"{url}/v1", MODEL)
        client = stack.enter_context(rivals.sdk(place))
        langchain, like = rivals.langchain(place), rivals.llama_index(place)
        ours, lc, li = _ours(url)
        for embedder in (ours, lc.embedder, li.embedder):
            stack.callback(embedder.close)
        ways: dict[str, Callable[[], Any]] = {
            SDK: lambda: client.embeddings.create(model=MODEL, input=[TEXT]).data[0].embedding,
            "langchain-openai": lambda: langchain.embed_query(TEXT),
            "OpenAILike": lambda: like.get_query_embedding(TEXT),
            "Embedder.embed_query": lambda: ours.embed_query(TEXT),
            "EmberdEmbeddings.embed_query": lambda: lc.embed_query(TEXT),
            "EmberdEmbedding.get_query_embedding": lambda: li.get_query_embedding(TEXT),
        }
        for way in ways.values():
            np.testing.assert_allclose(way(), expected([TEXT])[0], atol=CLOSE)
        times = in_turn(ways, CALLS, time.perf_counter)
    publish(table("latency", "from a thread", times))


@pytest.mark.timeout(SECONDS)
def test_ms_for_one_query_from_an_event_loop() -> None:
    with canned_server() as url:
        times = asyncio.run(_in_a_loop(url))
    publish(table("latency-async", "from an event loop", times))


def _ours(url: str) -> tuple[Embedder, EmberdEmbeddings, EmberdEmbedding]:
    return (
        Embedder(MODEL, base_url=url, query_instruction=NO_INSTRUCTION),
        EmberdEmbeddings(model=MODEL, base_url=url, query_instruction=NO_INSTRUCTION),
        EmberdEmbedding(model_name=MODEL, base_url=url, query_instruction=NO_INSTRUCTION),
    )


async def _in_a_loop(url: str) -> dict[str, list[float]]:
    place = rivals.Place(f"{url}/v1", MODEL)
    langchain, like = rivals.langchain(place), rivals.llama_index(place)
    ours, lc, li = _ours(url)
    async with rivals.async_sdk(place) as client:

        async def bare() -> Any:
            return (await client.embeddings.create(model=MODEL, input=[TEXT])).data[0].embedding

        ways: dict[str, AsyncWay] = {
            SDK: bare,
            "langchain-openai": lambda: langchain.aembed_query(TEXT),
            "OpenAILike": lambda: like.aget_query_embedding(TEXT),
            "Embedder.aembed_query": lambda: ours.aembed_query(TEXT),
            "EmberdEmbeddings.aembed_query": lambda: lc.aembed_query(TEXT),
            "EmberdEmbedding.aget_query_embedding": lambda: li.aget_query_embedding(TEXT),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for call in range(CALLS + 1):
            for name, way in ways.items():
                began = time.perf_counter()
                vector = await way()
                times[name].append(time.perf_counter() - began)
                if not call:
                    np.testing.assert_allclose(vector, expected([TEXT])[0], atol=CLOSE)
    for embedder in (ours, lc.embedder, li.embedder):
        await embedder.aclose()
    await rivals.aclose(langchain, like)
    return {name: taken[1:] for name, taken in times.items()}

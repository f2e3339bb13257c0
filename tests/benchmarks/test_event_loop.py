"""How late other tasks of an event loop are while texts are embedded in it.

A probe sleeps 5 ms over and over; how much later it wakes is somebody's blocking. The same batches
through a LlamaIndex embedding that does nothing show what the framework itself blocks; and the
columns with and without the garbage collector, what it takes to walk through millions of floats.
``make bench`` prints the figures. Nothing here asserts a time.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.embeddings.base import BaseEmbedding

from canned_server import canned_server, expected
from emberd import Embedder, TextError, ato_lists, index_identity
from emberd.cache import open_cache
from emberd.cache.cache import VectorCache
from fake_server import FakeServer
from langchain_emberd import EmberdEmbeddings
from llama_index.embeddings.emberd import EmberdEmbedding
from server_process import in_own_process

MODEL = "Qwen/Qwen3-Embedding-4B"
DIMENSIONS = 2560
TEXTS = [f"text {number} " + "word " * 60 for number in range(5000)]
BATCH = 10
QUERIES = 512
VECTORS = 10_240
PREPARED = 100_000
WEIGHTS_BYTES = 1 << 30
PROBE_S = 0.005
ROUNDS = 5
MS = 1000


class Idle(BaseEmbedding):
    """What LlamaIndex does around an embedding, and nothing else."""

    def _get_query_embedding(self, query: str) -> list[float]:
        return [0.0] * DIMENSIONS

    def _get_text_embedding(self, text: str) -> list[float]:
        return [0.0] * DIMENSIONS

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return [0.0] * DIMENSIONS

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        await asyncio.sleep(PROBE_S)
        return [[0.0] * DIMENSIONS for _ in texts]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    fields = {"model": MODEL, "dimensions": DIMENSIONS, "context_tokens": 32_768}
    with in_own_process(FakeServer, **fields) as at:
        yield at


async def _probe(lateness_ms: list[float]) -> None:
    while True:
        due = time.perf_counter() + PROBE_S
        await asyncio.sleep(PROBE_S)
        lateness_ms.append((time.perf_counter() - due) * MS)


async def _worst_ms(work: Callable[[], Awaitable[Any]], *, collecting: bool) -> float:
    gc.collect()
    if not collecting:
        gc.disable()
    lateness_ms: list[float] = []
    probe = asyncio.create_task(_probe(lateness_ms))
    await asyncio.sleep(10 * PROBE_S)
    kept = await work()  # letting go of millions of floats takes a while too
    await asyncio.sleep(10 * PROBE_S)
    probe.cancel()
    gc.enable()
    del kept
    return max(lateness_ms)


async def _row(name: str, work: Callable[[], Awaitable[Any]]) -> None:
    without = [await _worst_ms(work, collecting=False) for _ in range(ROUNDS)]
    with_it = [await _worst_ms(work, collecting=True) for _ in range(ROUNDS)]
    print(f"  {name:<40} {statistics.median(without):12.1f} {statistics.median(with_it):12.1f}")


def test_other_tasks_while_texts_are_embedded(url: str) -> None:
    """First use, 5,000 texts in batches of 10, and 512 queries at once."""
    asyncio.run(_table(url))


async def _table(url: str) -> None:
    langchain = EmberdEmbeddings(model=MODEL, base_url=url)
    llama_index = EmberdEmbedding(model_name=MODEL, base_url=url, embed_batch_size=BATCH)
    plain, idle = Embedder(MODEL, base_url=url), Idle(embed_batch_size=BATCH)
    slices = [TEXTS[start : start + BATCH] for start in range(0, len(TEXTS), BATCH)]
    queries, ask = TEXTS[:QUERIES], langchain.aembed_query

    async def embed(texts: list[str]) -> list[list[float]]:
        return await ato_lists(await plain.aembed_documents(texts))

    first_ms = await _worst_ms(lambda: ask("first"), collecting=True)
    print(f"\nworst lateness in ms, median of {ROUNDS} rounds      gc off        gc on")
    print(f"  {'the first query of the process, once':<40} {'':12} {first_ms:12.1f}")
    await _row("LlamaIndex alone, 5,000 by 10", lambda: idle.aget_text_embedding_batch(TEXTS))
    await _row("LlamaIndex, 5,000 by 10", lambda: llama_index.aget_text_embedding_batch(TEXTS))
    await _row("Embedder, 5,000 in calls of 10", lambda: asyncio.gather(*map(embed, slices)))
    await _row("Embedder, 5,000 in one call", lambda: plain.aembed_documents(TEXTS))
    await _row("LangChain, 5,000 in one call", lambda: langchain.aembed_documents(TEXTS))
    await _row("LangChain, 512 queries at once", lambda: asyncio.gather(*map(ask, queries)))
    await plain.aclose()
    await langchain.embedder.aclose()
    await llama_index.embedder.aclose()


def test_pauses_of_each_kind_of_work(tmp_path: Path) -> None:
    """Preparing, reading, cutting and listing at the sizes at which they once blocked the loop."""
    asyncio.run(_kinds(tmp_path))


async def _kinds(folder: Path) -> None:
    print(f"\nworst lateness in ms, median of {ROUNDS} rounds      gc off        gc on")
    texts = [f"text {number}" for number in range(PREPARED)]
    nowhere = Embedder(MODEL, base_url="http://127.0.0.1:9")

    async def prepare() -> None:
        with suppress(TextError):  # the last text; nothing is sent
            await nowhere.aembed_queries([*texts, None])  # type: ignore[list-item]

    await _row(f"{PREPARED:,} texts prepared", prepare)
    vectors = expected(texts[:VECTORS])
    await _row(f"{VECTORS:,} vectors as lists", lambda: ato_lists(vectors))
    with canned_server(floats=True) as url:
        floats = Embedder(MODEL, base_url=url)
        await floats.aensure()
        await _row(
            "1,024 vectors in replies of numbers", lambda: floats.aembed_documents(TEXTS[:1024])
        )
        await floats.aclose()
    url = f"sqlite://{folder}/cache.db"
    cached = Embedder(MODEL, base_url="http://127.0.0.1:9", cache=url, dimensions=2048)
    identity = index_identity.native(cached.settings, cached.settings.spec)
    VectorCache(open_cache(url), identity, DIMENSIONS).keep(texts[:VECTORS], vectors)
    await _row(f"{VECTORS:,} cache hits, cut", lambda: cached.aembed_documents(texts[:VECTORS]))
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text('{"hidden_size": 2560}')
    with (model / "model.safetensors").open("wb") as weights:
        weights.truncate(WEIGHTS_BYTES)

    async def first() -> None:
        given: dict[str, Any] = {"query_instruction": "", "document_instruction": ""}
        embedder = Embedder(model, base_url="http://127.0.0.1:9", cache=url, **given)
        (model / "model.safetensors").touch()  # so that it is hashed again
        with suppress(Exception):  # there is no server
            await embedder.aembed_query("a")

    await _row("first use of a model folder", first)

"""Texts a second through the real SGLang on the CPU, with a tiny model: many queries, and bulk.

All clients ask the same server, in turn, and send the same texts without an instruction. What a
bare HTTP client gets with the best of many batch sizes and numbers of connections is the bound.
``make bench`` prints the figures. Nothing here asserts a time. Needs ``make engines``.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from benchmarks import rivals
from benchmarks.record import Ratio, Row, Table, in_turn, publish
from emberd import Embedder
from emberd.verified_manager import Manager
from langchain_emberd import EmberdEmbeddings
from llama_index.embeddings.emberd import EmberdEmbedding
from real.engines import HERE, embedder_for, python_of, run

COUNT: Final = 512
THREADS: Final = 32
ROUNDS: Final = 3  # langchain-openai takes a dozen seconds for each
BATCHES: Final = (32, 64, 128, 256)
CONNECTIONS: Final = (1, 2, 4)
FINALISTS: Final = 3
LEAST_COSINE: Final = 0.999
SECONDS: Final = 900
LC: Final = "langchain-openai"
QUERIES: Final = rivals.make_texts(COUNT, 5, 15)
TEXTS: Final = rivals.make_texts(COUNT, 10, 40)  # the tiny tokenizer makes four tokens a word
NOTE: Final = (
    "SGLang on the same 2 cores as the client, a model of a thousandth of the size of "
    "Qwen3-Embedding-0.6B: on a GPU the server is more of the time."
)

Way = Callable[[], Any]
AsyncWay = Callable[[], Awaitable[Any]]


@pytest.fixture(scope="module")
def embedder(
    engines_of_this_machine: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Embedder]:
    """An embedder whose server runs, and adds no instruction."""
    model: Path = tmp_path_factory.mktemp("models") / "tiny"
    run(python_of("sglang"), HERE / "make_tiny.py", str(model))
    manager = Manager(tmp_path_factory.mktemp("home"))
    made = embedder_for(model, manager, query_instruction="")
    made.ensure()
    yield made
    made.close()
    manager.stop()


@pytest.fixture(scope="module")
def place(embedder: Embedder) -> rivals.Place:
    """Where its server is, for rivals."""
    found = embedder.endpoint()
    assert found.api_key is not None
    return rivals.Place(found.base_url, found.model, found.api_key)


def same(ways: dict[str, Way]) -> None:
    """See that all ways give vectors of the same directions in the same order."""
    found = [np.asarray(way(), np.float64) for way in ways.values()]
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in found]
    for others in units[1:]:
        assert np.einsum("ij,ij->i", units[0], others).min() > LEAST_COSINE


def rows_of(times: dict[str, list[float]]) -> list[Row]:
    """Return texts a second, one row a way."""
    return [
        Row(
            name,
            {
                "min": COUNT / max(taken),
                "median": COUNT / statistics.median(taken),
                "max": COUNT / min(taken),
            },
        )
        for name, taken in times.items()
    ]


def fastest(rows: list[Row], prefix: str) -> float:
    """Return the highest median of the rows whose names begin so."""
    return max(row.figures["median"] for row in rows if row.name.startswith(prefix))


def table(name: str, title: str, rows: list[Row], ratios: list[Ratio]) -> Table:
    """Return what was found."""
    return Table(
        name=name,
        title=f"texts/s, real SGLang on the CPU, {title}, {ROUNDS} rounds in turn",
        rows=rows,
        ratios=ratios,
        packages=(*rivals.PACKAGES, "aiohttp"),
        notes=(NOTE,),
    )


@pytest.mark.timeout(SECONDS)
def test_queries_at_once_from_an_event_loop(embedder: Embedder, place: rivals.Place) -> None:
    rows = rows_of(asyncio.run(_queries_at_once(embedder, place)))
    ratios = [
        Ratio(f"{ours} / {LC}", fastest(rows, ours) / fastest(rows, LC), target)
        for ours, target in (("EmberdEmbeddings", 3.5), ("Embedder", None))
    ]
    publish(table("sglang-queries", f"{COUNT} aembed_query at once", rows, ratios))


async def _queries_at_once(embedder: Embedder, place: rivals.Place) -> dict[str, list[float]]:
    langchain = rivals.langchain(place)
    lc = EmberdEmbeddings.from_embedder(embedder)
    li = EmberdEmbedding.from_embedder(embedder)
    asks: dict[str, Callable[[str], Awaitable[Any]]] = {
        f"{LC}, aembed_query": langchain.aembed_query,
        "EmberdEmbeddings.aembed_query": lc.aembed_query,
        "EmberdEmbedding.aget_query_embedding": li.aget_query_embedding,
        "Embedder.aembed_query, arrays": embedder.aembed_query,
    }
    times: dict[str, list[float]] = {name: [] for name in asks}
    for _ in range(ROUNDS + 1):
        for name, ask in asks.items():
            began = time.perf_counter()
            await asyncio.gather(*map(ask, QUERIES))
            times[name].append(time.perf_counter() - began)
    await embedder.aclose()
    await rivals.aclose(langchain)
    return {name: taken[1:] for name, taken in times.items()}


@pytest.mark.timeout(SECONDS)
def test_queries_from_threads(embedder: Embedder, place: rivals.Place) -> None:
    langchain = rivals.langchain(place)
    lc = EmberdEmbeddings.from_embedder(embedder)
    ways: dict[str, Way] = {
        f"{LC}, embed_query": lambda: rivals.from_threads(THREADS, QUERIES, langchain.embed_query),
        "EmberdEmbeddings.embed_query": lambda: rivals.from_threads(
            THREADS, QUERIES, lc.embed_query
        ),
        "Embedder.embed_query, arrays": lambda: rivals.from_threads(
            THREADS, QUERIES, embedder.embed_query
        ),
    }
    same(ways)
    rows = rows_of(in_turn(ways, ROUNDS, time.perf_counter))
    ratios = [
        Ratio(f"{ours} / {LC}", fastest(rows, ours) / fastest(rows, LC))
        for ours in ("EmberdEmbeddings", "Embedder")
    ]
    title = f"{COUNT} embed_query from {THREADS} threads"
    publish(table("sglang-threads", title, rows, ratios))


@pytest.mark.timeout(SECONDS)
def test_texts_in_bulk(embedder: Embedder, place: rivals.Place) -> None:
    lc = EmberdEmbeddings.from_embedder(embedder)
    li = EmberdEmbedding.from_embedder(embedder)
    langchain = rivals.langchain(place)
    chunk = min(BATCHES, key=lambda size: _seconds(lambda: langchain.embed_documents(TEXTS, size)))
    ways: dict[str, Way] = {
        f"{LC} (default)": lambda: langchain.embed_documents(TEXTS),
        f"{LC}, chunks of {chunk} (its best)": lambda: langchain.embed_documents(TEXTS, chunk),
        **_finalists(place),
        "EmberdEmbeddings.embed_documents": lambda: lc.embed_documents(TEXTS),
        "EmberdEmbedding.get_text_embedding_batch": lambda: li.get_text_embedding_batch(TEXTS),
        "Embedder.embed_documents, arrays": lambda: embedder.embed_documents(TEXTS),
    }
    same(ways)
    rows = rows_of(in_turn(ways, ROUNDS, time.perf_counter))
    ours, lists = fastest(rows, "Embedder"), fastest(rows, "EmberdEmbeddings")
    ratios = [
        Ratio(f"EmberdEmbeddings / {LC}'s best", lists / fastest(rows, LC), 1.1),
        Ratio(f"Embedder / {LC}'s best", ours / fastest(rows, LC), 1.1),
        Ratio("Embedder / the best bare HTTP client", ours / fastest(rows, "bare HTTP"), 0.95),
    ]
    publish(table("sglang-bulk", f"{COUNT} texts of 10 to 40 words in bulk", rows, ratios))


def _finalists(place: rivals.Place) -> dict[str, Way]:
    """Return the fastest of the ways of a bare client; chance alone would choose a single one."""
    ways: dict[str, Way] = {}
    for batch, connections in itertools.product(BATCHES, CONNECTIONS):
        if batch * connections <= COUNT:
            raw = rivals.Raw(place, connections, batch)
            ways[f"bare HTTP, {connections} x {batch}"] = lambda r=raw: r.embed(TEXTS)  # type: ignore[misc]
    seconds = {name: _seconds(way) for name, way in ways.items()}
    return {name: ways[name] for name in sorted(ways, key=lambda name: seconds[name])[:FINALISTS]}


def _seconds(way: Way) -> float:
    began = time.perf_counter()
    way()
    return time.perf_counter() - began

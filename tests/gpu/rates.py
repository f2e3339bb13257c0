"""Parts about speed: in bulk, one query, many queries at once; beside other clients, and none.

All clients ask the same server, take turns, and send the same texts without an instruction. A
client with a batch size is given the best of a few, found on a quarter of the texts.
"""

from __future__ import annotations

import asyncio
import http.client
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
import orjson

import server_cpu
from benchmarks import rivals
from emberd import Embedder
from gpu import compare
from gpu.bench import NO_INSTRUCTION, Bench
from gpu.machine import SHORT_TOKENS
from gpu.result import Report
from langchain_emberd import EmberdEmbeddings
from llama_index.embeddings.emberd import EmberdEmbedding

LANGCHAIN: Final = "langchain-openai"
LIKE: Final = "OpenAILike"
BARE: Final = "bare HTTP"
LEAST_COSINE: Final = 0.99

_BATCHES: Final = {16: (64, 256, 1000), 256: (32, 128, 384), 2000: (4, 16, 48)}
_CONNECTIONS: Final = (2, 8)
_TRIED: Final = 4  # a quarter of the texts
_COMPARED: Final = 32
_SPARE_S: Final = 5.0
_MS: Final = 1000
_WARM_UP: Final = 5
_PATH: Final = "/embeddings"

Way = Callable[[list[str]], Any]
Ask = Callable[[str], Any]


def bulk(bench: Bench, report: Report) -> None:
    """Embed texts of three lengths in bulk, by emberd's classes and by other clients."""
    embedder = bench.shared(query_instruction=NO_INSTRUCTION)
    found: dict[str, Any] = {}
    for tokens in bench.sizes.bulk:
        texts = bench.texts(tokens)[: bench.sizes.bulk[tokens]]
        rates = _one_length(bench, report, embedder, tokens, texts)
        best = _best_of(rates)
        found[str(tokens)] = {
            "texts": len(texts),
            "texts_per_s": rates,
            "tokens_per_s": {name: round(rate * tokens) for name, rate in rates.items()},
            "cpu_s_for_1000_texts": _cpu_seconds(bench, embedder, texts),
            "ratios": {
                f"{ours} / {rival}": round(best[ours] / best[rival], 2)
                for ours in ("Embedder", "EmberdEmbeddings", "EmberdEmbedding")
                for rival in (LANGCHAIN, LIKE, BARE)
                if ours in best and rival in best
            },
        }
        report.figure("bulk", found)
    report.summary = "; ".join(_length_in_words(tokens, each) for tokens, each in found.items())


def latency(bench: Bench, report: Report) -> None:
    """Time single queries, one after another, by each client in turn."""
    embedder = bench.shared(query_instruction=NO_INSTRUCTION)
    texts = bench.texts(SHORT_TOKENS)[: bench.sizes.queries]
    place = place_of(embedder)
    langchain, like = rivals.langchain(place), rivals.llama_index(place)
    lc = EmberdEmbeddings.from_embedder(embedder)
    li = EmberdEmbedding.from_embedder(embedder)
    bare = Bare(place)
    asks: dict[str, Ask] = {
        "Embedder": embedder.embed_query,
        "EmberdEmbeddings": lc.embed_query,
        "EmberdEmbedding": li.get_query_embedding,
        LANGCHAIN: langchain.embed_query,
        LIKE: like.get_query_embedding,
        BARE: bare.embed,
    }
    times: dict[str, list[float]] = {name: [] for name in asks}
    for number, text in enumerate([*texts[:_WARM_UP], *texts]):
        for name, ask in asks.items():
            began = time.perf_counter()
            ask(text)
            if number >= _WARM_UP:
                times[name].append(_MS * (time.perf_counter() - began))
    found = {name: _milliseconds(taken) for name, taken in times.items()}
    report.figure("queries", len(texts))
    report.figure("tokens", SHORT_TOKENS)
    report.figure("ms", found)
    report.summary = "ms at the median: " + ", ".join(
        f"{name} {each['median']:.1f}" for name, each in found.items()
    )


def at_once(bench: Bench, report: Report) -> None:
    """Ask many queries at the same time from an event loop; each must get its own vector."""
    embedder = bench.shared(query_instruction=NO_INSTRUCTION)
    texts = bench.texts(SHORT_TOKENS)[: bench.sizes.at_once]
    expected = embedder.embed_queries(texts)
    found = asyncio.run(_all_at_once(embedder, texts))
    figures = {}
    for name, (seconds, waits, vectors) in found.items():
        wrong = compare.misplaced(np.asarray(vectors, np.float32), expected)
        alike = compare.spread(expected, np.asarray(vectors, np.float32))
        report.require(not wrong, f"{name}: vectors in the wrong place: {wrong[:5]}")
        report.require(alike["min"] >= LEAST_COSINE, f"{name}: least cosine {alike['min']}")
        figures[name] = {
            "seconds": round(seconds, 3),
            "queries_per_s": round(len(texts) / seconds),
            "ms": _milliseconds(waits),
            "cosine": alike,
        }
    report.figure("queries", len(texts))
    report.figure("ways", figures)
    report.summary = f"{len(texts)} queries, 1/s: " + ", ".join(
        f"{name} {each['queries_per_s']:,}" for name, each in figures.items()
    )


def place_of(embedder: Embedder) -> rivals.Place:
    """Return where an embedder's server is, for other clients."""
    endpoint = embedder.endpoint()
    return rivals.Place(endpoint.base_url, endpoint.model, endpoint.api_key or "none")


class Bare:
    """A client without any library: one kept connection, a query a request, nothing checked.

    Args:
        place: The server.
    """

    def __init__(self, place: rivals.Place) -> None:
        url = urlsplit(place.base_url)
        self._path = f"{url.path}{_PATH}"
        self._model = place.model
        self._connection = http.client.HTTPConnection(str(url.hostname), url.port)
        self._headers = {
            "authorization": f"Bearer {place.api_key}",
            "content-type": "application/json",
        }

    def embed(self, text: str) -> rivals.Floats:
        """Return the vector of a text, (dimensions,)."""
        asked = {"model": self._model, "input": [text], "encoding_format": "base64"}
        self._connection.request("POST", self._path, orjson.dumps(asked), self._headers)
        vector: rivals.Floats = rivals.decode(self._connection.getresponse().read())[0]
        return vector


def _one_length(
    bench: Bench, report: Report, embedder: Embedder, tokens: int, texts: list[str]
) -> dict[str, float]:
    """Return way -> texts a second, the median of the rounds."""
    ways = _ways(embedder, tokens, texts)
    head = texts[:_COMPARED]
    expected = np.asarray(ways["Embedder"](head))
    for name, way in ways.items():
        least = compare.spread(expected, np.asarray(way(head), np.float32))["min"]
        report.require(least >= LEAST_COSINE, f"{tokens} tokens, {name}: least cosine {least}")
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(bench.sizes.rounds[tokens]):
        for name, way in ways.items():
            # What was timed so far is kept when time is short.
            if bench.left_s > _SPARE_S:
                times[name].append(_seconds(way, texts))
    report.require(all(times.values()), f"{tokens} tokens: no time for all ways")
    return {
        name: round(len(texts) / statistics.median(taken), 1)
        for name, taken in times.items()
        if taken
    }


def _ways(embedder: Embedder, tokens: int, texts: list[str]) -> dict[str, Way]:
    place = place_of(embedder)
    langchain = rivals.langchain(place)
    lc = EmberdEmbeddings.from_embedder(embedder)
    li = EmberdEmbedding.from_embedder(embedder)
    tried = texts[: max(1, len(texts) // _TRIED)]
    embedder.embed_documents(tried)  # the first of its length finds nothing warm
    sizes = _BATCHES[tokens]
    chunk = _fastest(sizes, lambda n: lambda some: langchain.embed_documents(some, n), tried)
    like = _fastest(sizes, lambda n: rivals.llama_index(place, n).get_text_embedding_batch, tried)
    bare = _fastest(
        [(_CONNECTIONS[0], sizes[1]), (_CONNECTIONS[1], sizes[0])],
        lambda pair: rivals.Raw(place, *pair).embed,
        tried,
    )
    return {
        "Embedder": embedder.embed_documents,
        "EmberdEmbeddings": lc.embed_documents,
        "EmberdEmbedding": li.get_text_embedding_batch,
        f"{LANGCHAIN} x {chunk}": lambda some: langchain.embed_documents(some, chunk),
        f"{LIKE} x {like}": rivals.llama_index(place, like).get_text_embedding_batch,
        f"{BARE} {bare[0]} x {bare[1]}": rivals.Raw(place, *bare).embed,
    }


def _cpu_seconds(bench: Bench, embedder: Embedder, texts: list[str]) -> dict[str, float]:
    """Return what 1,000 texts cost each process; with short texts, SGLang's main process limits."""
    used = server_cpu.used_by(bench.home, lambda: embedder.embed_documents(texts), len(texts))
    return {name: round(used[name], 3) for name in server_cpu.KINDS}


def _fastest(options: Iterable[Any], way: Callable[[Any], Way], texts: list[str]) -> Any:
    return min(options, key=lambda option: _seconds(way(option), texts))


def _seconds(way: Way, texts: list[str]) -> float:
    began = time.perf_counter()
    kept = way(texts)
    seconds = time.perf_counter() - began
    del kept  # letting go of millions of floats is not part of the time
    return seconds


def _best_of(rates: Mapping[str, float]) -> dict[str, float]:
    """Return the rate of each client, without the batch size in its name."""
    names = ("Embedder", "EmberdEmbeddings", "EmberdEmbedding", LANGCHAIN, LIKE, BARE)
    return {
        name: rate
        for name in names
        for way, rate in rates.items()
        if way == name or way.startswith(f"{name} ")
    }


def _length_in_words(tokens: str, found: Mapping[str, Any]) -> str:
    rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in found["texts_per_s"].items())
    cpu = ", ".join(f"{name} {used:.2f}" for name, used in found["cpu_s_for_1000_texts"].items())
    return f"{tokens} tokens, texts/s: {rates} (CPU s for 1,000 texts: {cpu})"


def _milliseconds(taken: list[float]) -> dict[str, float]:
    ordered = sorted(taken)
    last = len(ordered) - 1
    return {
        "median": round(statistics.median(ordered), 2),
        "p95": round(ordered[round(0.95 * last)], 2),
        "p99": round(ordered[round(0.99 * last)], 2),
    }


async def _all_at_once(
    embedder: Embedder, texts: list[str]
) -> dict[str, tuple[float, list[float], list[Any]]]:
    """Return way -> seconds for all, milliseconds that each waited, vectors."""
    langchain = rivals.langchain(place_of(embedder))
    lc = EmberdEmbeddings.from_embedder(embedder)
    asks: dict[str, Callable[[str], Awaitable[Any]]] = {
        "Embedder": embedder.aembed_query,
        "EmberdEmbeddings": lc.aembed_query,
        LANGCHAIN: langchain.aembed_query,
    }
    found: dict[str, tuple[float, list[float], list[Any]]] = {}
    for name, ask in asks.items():
        await ask(texts[0])
        waits: list[float] = []
        began = time.perf_counter()
        vectors = await asyncio.gather(*(_timed(ask, text, waits) for text in texts))
        found[name] = (time.perf_counter() - began, waits, list(vectors))
    await embedder.aclose()
    await rivals.aclose(langchain)
    return found


async def _timed(ask: Callable[[str], Awaitable[Any]], text: str, waits: list[float]) -> Any:
    began = time.perf_counter()
    vector = await ask(text)
    waits.append(_MS * (time.perf_counter() - began))
    return vector

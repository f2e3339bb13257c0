"""Texts a second on a server that answers at once: what each client can take in.

Each way takes its turn, round by round, after a search for the batch size that suits a rival best
and one round that does not count. Figures are medians, ratios those of one run. ``make bench``
prints them. Nothing here asserts a time.
"""

from __future__ import annotations

import asyncio
import gc
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

TEXTS: Final = 4096
FLOAT_TEXTS: Final = 512  # some rivals take 5 ms for each vector of numbers
ROUNDS: Final = 5
LOOP_ROUNDS: Final = 15  # on an event loop, rounds differ more
BATCHES: Final = (64, 256, 1024)
SEARCHED: Final = 2  # times, where it takes no minutes
CONNECTIONS: Final = (1, 2, 4)
CLOSE: Final = 1e-6
SECONDS: Final = 900

LC, LI = "langchain-openai", "OpenAILike"
TYPICAL, SHORT = (60, 120), (3, 12)

Way = Callable[[list[str]], Any]
AsyncWay = Callable[[list[str]], Awaitable[Any]]


def check(way: Way, texts: list[str]) -> None:
    """See that a way gives the right vectors in the right order before it is timed."""
    np.testing.assert_allclose(np.asarray(way(texts)), expected(texts), atol=CLOSE)


def seconds(way: Way, texts: list[str]) -> float:
    """Return how long ``way`` takes, at best of a few times."""
    times = []
    for _ in range(SEARCHED if len(texts) == TEXTS else 1):
        began = time.perf_counter()
        way(texts)
        times.append(time.perf_counter() - began)
    return min(times)


def best(make: Callable[..., Way], texts: list[str], *choices: Sequence[int]) -> tuple[int, ...]:
    """Return the settings, one of each of ``choices``, with which a way takes least time."""
    settings: list[tuple[int, ...]] = [()]
    for choice in choices:
        settings = [(*chosen, value) for chosen in settings for value in choice]
    return min(settings, key=lambda chosen: seconds(make(*chosen), texts))


def synchronous(
    url: str, place: rivals.Place, texts: list[str], stack: ExitStack
) -> dict[str, Way]:
    """Return all ways; those of rivals with their own settings and with the best for them."""
    client = stack.enter_context(rivals.sdk(place))

    def langchain(batch: int) -> Way:
        return rivals.langchain(place, batch).embed_documents

    def llama_index(batch: int) -> Way:
        way: Way = rivals.llama_index(place, batch).get_text_embedding_batch
        return way

    def bare(batch: int) -> Way:
        return lambda some: rivals.sdk_embed(client, MODEL, some, batch)

    def raw(batch: int, connections: int) -> Way:
        return rivals.Raw(place, connections, batch).embed

    (chunk,), (size,), (bare_size,), (raw_size, connections) = (
        best(langchain, texts, BATCHES),
        best(llama_index, texts, BATCHES),
        best(bare, texts, BATCHES),
        best(raw, texts, BATCHES, CONNECTIONS),
    )
    ours = Embedder(MODEL, base_url=url)
    lc = EmberdEmbeddings(model=MODEL, base_url=url)
    li = EmberdEmbedding(model_name=MODEL, base_url=url)
    for embedder in (ours, lc.embedder, li.embedder):
        stack.callback(embedder.close)
    ways: dict[str, Way] = {
        f"{LC}, chunks of {rivals.LANGCHAIN_CHUNK} (default)": langchain(rivals.LANGCHAIN_CHUNK),
        f"{LC}, chunks of {chunk} (its best)": langchain(chunk),
        f"{LI}, batches of {rivals.OPENAI_LIKE_BATCH} (default)": llama_index(
            rivals.OPENAI_LIKE_BATCH
        ),
        f"{LI}, batches of {size} (its best)": llama_index(size),
        f"openai SDK, batches of {bare_size} (its best)": bare(bare_size),
        f"bare http.client, {connections} x {raw_size}, arrays": raw(raw_size, connections),
        "EmberdEmbeddings.embed_documents": lc.embed_documents,
        "EmberdEmbedding.get_text_embedding_batch": li.get_text_embedding_batch,
        "Embedder.embed_documents, arrays": ours.embed_documents,
        "Embedder.iter_documents, arrays": lambda some: list(ours.iter_documents(iter(some))),
    }
    return ways


def rows_of(times: dict[str, list[float]], count: int) -> list[Row]:
    """Return texts a second, one row a way."""
    return [
        Row(
            name,
            {
                "min": count / max(taken),
                "median": count / statistics.median(taken),
                "max": count / min(taken),
            },
        )
        for name, taken in times.items()
    ]


def faster(rows: Sequence[Row], ours: str, theirs: str) -> float:
    """Return by how much ``ours`` is faster than the fastest row whose name starts with that."""
    rates = {row.name: row.figures["median"] for row in rows}
    own = next(rate for name, rate in rates.items() if name.startswith(ours))
    return own / max(rate for name, rate in rates.items() if name.startswith(theirs))


def ratios_of(
    rows: Sequence[Row], targets: tuple[float | None, float | None, float | None] = (None,) * 3
) -> list[Ratio]:
    """Return ours against each rival's best: LangChain's, LlamaIndex's, and of the Embedder."""
    pairs = (
        ("EmberdEmbeddings", LC),
        ("EmberdEmbedding.", LI),
        ("Embedder.", LC),
    )
    ratios = [
        Ratio(f"{ours.rstrip('.')} / {theirs}'s best", faster(rows, ours, theirs), target)
        for (ours, theirs), target in zip(pairs, targets, strict=True)
    ]
    more = [row.name for row in rows if row.name.startswith(("bare", "openai SDK"))]
    return ratios + [Ratio(f"Embedder / {name}", faster(rows, "Embedder.", name)) for name in more]


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize(
    ("floats", "words"),
    [
        pytest.param(False, TYPICAL, id="base64"),
        pytest.param(False, SHORT, id="base64-short"),
        pytest.param(True, TYPICAL, id="floats"),
    ],
)
def test_texts_a_second(
    floats: bool, words: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    texts = rivals.make_texts(FLOAT_TEXTS if floats else TEXTS, *words)
    with ExitStack() as stack:
        url = stack.enter_context(canned_server(floats=floats))
        ways = synchronous(url, rivals.Place(f"{url}/v1", MODEL), texts, stack)
        for way in ways.values():
            check(way, texts)
        gc.collect()
        calls = {name: _given(way, texts) for name, way in ways.items()}
        times = in_turn(calls, ROUNDS, time.perf_counter)
    rows = rows_of(times, len(texts))
    publish(
        Table(
            name=f"throughput-{request.node.callspec.id}",
            title=f"texts/s, {len(texts):,} texts of {words[0]} to {words[1]} words, a server that "
            f"answers at once with {_form(floats)}, {ROUNDS} rounds in turn",
            rows=rows,
            ratios=ratios_of(rows, (15.0, 15.0, 15.0) if floats else (2.5, 2.0, 7.0)),
            packages=rivals.PACKAGES,
        )
    )


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("floats", [False, True], ids=["base64", "floats"])
def test_texts_a_second_from_an_event_loop(floats: bool) -> None:
    texts = rivals.make_texts(FLOAT_TEXTS if floats else TEXTS, *TYPICAL)
    with canned_server(floats=floats) as url:
        times = asyncio.run(_in_a_loop(url, rivals.Place(f"{url}/v1", MODEL), texts))
    rows = rows_of(times, len(texts))
    publish(
        Table(
            name=f"throughput-{'floats' if floats else 'base64'}-async",
            title=f"texts/s from an event loop, {len(texts):,} texts, a server that answers at "
            f"once with {_form(floats)}, {LOOP_ROUNDS} rounds in turn",
            rows=rows,
            ratios=ratios_of(rows),
            packages=(*rivals.PACKAGES, "aiohttp"),
        )
    )


def _form(floats: bool) -> str:
    return "numbers" if floats else "base64"


async def _in_a_loop(url: str, place: rivals.Place, texts: list[str]) -> dict[str, list[float]]:
    langchain, like = rivals.langchain(place), rivals.llama_index(place)
    like._get_aclient()  # made now, so that copies share it
    ours = Embedder(MODEL, base_url=url)
    lc = EmberdEmbeddings(model=MODEL, base_url=url)
    li = EmberdEmbedding(model_name=MODEL, base_url=url)

    def in_chunks(size: int) -> AsyncWay:
        return lambda some: langchain.aembed_documents(some, chunk_size=size)

    def in_batches(size: int) -> AsyncWay:
        way: AsyncWay = like.model_copy(update={"embed_batch_size": size}).aget_text_embedding_batch
        return way

    chunk = await _best(in_chunks, texts)
    size = await _best(in_batches, texts)
    ways: dict[str, AsyncWay] = {
        f"{LC}, chunks of {rivals.LANGCHAIN_CHUNK} (default)": langchain.aembed_documents,
        f"{LC}, chunks of {chunk} (its best)": in_chunks(chunk),
        f"{LI}, batches of {size} (its best)": in_batches(size),
        "bare aiohttp, 4 x 64, arrays": lambda some: rivals.raw_async(place, some, 4, 64),
        "EmberdEmbeddings.aembed_documents": lc.aembed_documents,
        "EmberdEmbedding.aget_text_embedding_batch": li.aget_text_embedding_batch,
        "Embedder.aembed_documents, arrays": ours.aembed_documents,
    }
    times = await _atimes(ways, texts)
    for embedder in (ours, lc.embedder, li.embedder):
        await embedder.aclose()
    await rivals.aclose(langchain, like)
    return times


async def _atimes(ways: dict[str, AsyncWay], texts: list[str]) -> dict[str, list[float]]:
    """Time each way in turn; the first round does not count, and its vectors are checked."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(LOOP_ROUNDS + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            vectors = await way(texts)
            times[name].append(time.perf_counter() - began)
            if not round_:
                np.testing.assert_allclose(np.asarray(vectors), expected(texts), atol=CLOSE)
            del vectors
    return {name: taken[1:] for name, taken in times.items()}


async def _best(make: Callable[[int], AsyncWay], texts: list[str]) -> int:
    found: dict[int, float] = {}
    for batch in BATCHES:
        began = time.perf_counter()
        await make(batch)(texts)
        found[batch] = time.perf_counter() - began
    return min(found, key=lambda batch: found[batch])


def _given(way: Way, texts: list[str]) -> Callable[[], Any]:
    return lambda: way(texts)

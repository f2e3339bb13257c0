"""The same checkpoint served by emberd's engines and by other tools, on this machine's CPU.

``make bench-tools`` prints the figures. A round starts each tool, sends it the same requests, and
ends it, so that no other server takes processor time. The texts go out twice: through the
openai SDK, in requests that are equal for all, and through ``Embedder``, which sorts them by length
and sends as much in a request as the server should get. Nothing here asserts a time.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import openai
import psutil
import pytest

import leftovers
from benchmarks import rivals
from benchmarks.record import Row, Table, publish
from benchmarks.test_transformers_engine import Theirs
from emberd import Embedder, installs
from emberd.env import Places
from emberd.verified_manager import Manager
from other_tools import tools
from real.engines import START_S, EngineSide, engine_side, python_of, with_sentence_transformers

LAYERS: Final = 4
HIDDEN: Final = 1024  # the width of Qwen3-Embedding-0.6B, a seventh of its depth
COUNT: Final = 256
WORDS: Final = (2, 64)
IN_REQUEST: Final = 32
IN_FLIGHT: Final = 8
QUERIES: Final = 30
ROUNDS: Final = int(os.environ.get("ROUNDS", "3"))
COMPARED: Final = 64
LEAST_COSINE: Final = 0.999
SECONDS: Final = 3600
START: Final = "start s"
MEMORY: Final = "memory MB"
SDK: Final = "texts/s"
EMBEDDER: Final = "by Embedder"
QUERY: Final = "query ms"
COSINE: Final = "1 - cosine"

Figures = dict[str, float]
Serve = Callable[[], AbstractContextManager["Served"]]


class Served:
    """A server that runs: where it is, and what it consists of."""

    def __init__(
        self, place: rivals.Place, embedder: Embedder, parts: list[psutil.Process]
    ) -> None:
        self.place, self.embedder, self.parts = place, embedder, parts


@pytest.fixture(scope="module")
def engine(engines_of_this_machine: None) -> Iterator[EngineSide]:
    """A process that has transformers."""
    with engine_side(python_of("transformers")) as side:
        yield side


@pytest.fixture(scope="module")
def model(engine: EngineSide, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, and a tokenizer with the class name that older Transformers know too."""
    folder = engine.make_tiny(tmp_path_factory.mktemp("models") / "four-layers", LAYERS, HIDDEN)
    settings = folder / "tokenizer_config.json"
    kept = json.loads(settings.read_text())
    settings.write_text(json.dumps({**kept, "tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


@pytest.mark.timeout(SECONDS)
def test_the_same_requests_to_each_tool(engine: EngineSide, model: Path, tmp_path: Path) -> None:
    texts = rivals.make_texts(COUNT, *WORDS)
    expected = engine.reference(model, texts[:COMPARED], "float32").vectors
    ways: dict[str, Serve] = {
        f"emberd, {name}": lambda name=name: _by_emberd(name, model, tmp_path)  # type: ignore[misc]
        for name in ("transformers", "sglang")
    }
    for tool in tools.TOOLS:
        tools.install(tool)
        ways[tool.name] = lambda tool=tool: _by_tool(tool, model, tmp_path)  # type: ignore[misc]
    python = with_sentence_transformers(_transformers(), tmp_path / "sentences")
    found: dict[str, list[Figures]] = {}
    for number in range(ROUNDS):
        names = [*ways]
        for name in names[number % len(names) :] + names[: number % len(names)]:
            found.setdefault(name, []).append(_measured(ways[name], texts, expected))
            print(name, found[name][-1], flush=True)
        figures = _in_process(python, model, texts, expected)
        found.setdefault("sentence-transformers, in process", []).append(figures)
    assert max(max(each[COSINE] for each in rounds) for rounds in found.values()) < 1 - LEAST_COSINE
    title = (
        f"{COUNT} texts of {WORDS[0]} to {WORDS[1]} words, {IN_REQUEST} in a request of the SDK, "
        f"{IN_FLIGHT} in flight, {LAYERS} layers of {HIDDEN}, bfloat16, {ROUNDS} rounds"
    )
    rows = [Row(name, _medians(rounds)) for name, rounds in found.items()]
    publish(Table("other-tools", title, rows, packages=("openai",)))


def _medians(rounds: list[Figures]) -> Figures:
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


def _transformers() -> installs.Interpreter:
    found = installs.locate("transformers", Places.resolve())
    assert found is not None
    return found


def _measured(serve: Serve, texts: list[str], expected: Any) -> Figures:
    began = time.perf_counter()
    with serve() as served:
        figures = {START: time.perf_counter() - began}
        vectors = asyncio.run(_through_sdk(served.place, texts))  # warms it
        figures[COSINE] = 1 - _least_cosine(vectors, expected)
        figures[SDK] = _rate(lambda: asyncio.run(_through_sdk(served.place, texts)))
        ours = served.embedder.embed_documents(texts)
        figures[COSINE] = max(figures[COSINE], 1 - _least_cosine(ours, expected))
        figures[EMBEDDER] = _rate(lambda: served.embedder.embed_documents(texts))
        figures[QUERY] = _query_ms(served.place)
        figures[MEMORY] = tools.memory_bytes(served.parts) / 1e6
    return figures


def _least_cosine(vectors: Any, expected: Any) -> float:
    found = np.array(vectors[:COMPARED], np.float64)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return float(np.sum(found * expected, axis=1).min())


def _rate(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    kept = call()
    taken = time.perf_counter() - began
    del kept
    return COUNT / taken


async def _through_sdk(place: rivals.Place, texts: list[str]) -> list[list[float]]:
    places = asyncio.Semaphore(IN_FLIGHT)

    async def ask(some: list[str]) -> list[list[float]]:
        async with places:
            reply = await client.embeddings.create(model=place.model, input=some)
        return [entry.embedding for entry in reply.data]

    async with rivals.async_sdk(place) as client:
        starts = range(0, len(texts), IN_REQUEST)
        replies = await asyncio.gather(*(ask(texts[at : at + IN_REQUEST]) for at in starts))
    return [vector for reply in replies for vector in reply]


def _query_ms(place: rivals.Place) -> float:
    queries = rivals.make_texts(QUERIES, 8, 16)
    with rivals.sdk(place) as client:
        return 1000 * statistics.median(_seconds(client, place.model, each) for each in queries)


def _seconds(client: openai.OpenAI, model: str, text: str) -> float:
    began = time.perf_counter()
    client.embeddings.create(model=model, input=[text])
    return time.perf_counter() - began


@contextmanager
def _by_emberd(engine: str, model: Path, folder: Path) -> Iterator[Served]:
    home = folder / f"home-{engine}"
    manager = Manager(home)
    made = Embedder(model, engine=engine, device="cpu", start_timeout=START_S, manager=manager)
    with closing(made) as own:
        try:
            own.embed_documents(["ready?"])
            endpoint = own.endpoint()
            place = rivals.Place(endpoint.base_url, endpoint.model, endpoint.api_key or "none")
            yield Served(place, own, leftovers.find([str(home)]))
        finally:
            manager.stop()


@contextmanager
def _by_tool(tool: tools.Tool, model: Path, folder: Path) -> Iterator[Served]:
    log = folder / f"{tool.folder.name}.log"
    with tools.served(tool, model, log) as (url, process):
        parts = [process, *process.children(recursive=True)]
        with closing(Embedder(model, base_url=url)) as embedder:
            yield Served(rivals.Place(url, str(model)), embedder, parts)


def _in_process(python: str, model: Path, texts: list[str], expected: Any) -> Figures:
    began = time.perf_counter()
    theirs = Theirs(python, model, "bfloat16", str(os.cpu_count()))
    theirs.encode(["ready?"])
    figures = {START: time.perf_counter() - began}
    first = theirs.encode(texts)["vectors"]
    figures[COSINE] = 1 - _least_cosine(first, expected[: len(first)])
    figures[SDK] = COUNT / theirs.encode(texts)["seconds"]
    queries = rivals.make_texts(QUERIES, 8, 16)
    figures[QUERY] = 1000 * statistics.median(theirs.encode([q])["seconds"] for q in queries)
    figures[MEMORY] = tools.memory_bytes([psutil.Process(theirs.pid)]) / 1e6
    theirs.end()
    return figures

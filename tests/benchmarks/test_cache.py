"""Vectors that were computed before: emberd's cache in a file, and what LangChain offers.

``make bench`` prints the figures. Nothing here asserts a time.

Files that are opened are counted by Python's own audit events. SQLite opens its files without one:
they are looked up among the descriptors of the process, and added.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_classic.storage import LocalFileStore
from langchain_core.embeddings import Embeddings

from benchmarks.record import Ratio, Row, Table, publish
from emberd import to_lists
from emberd.cache import open_cache
from emberd.cache.cache import Cache, keys

VECTORS: Final = 20_000
DIMENSIONS: Final = 2560
BATCH: Final = 256  # texts that a request brings, and that are put at once
ROUNDS: Final = 3
SECONDS: Final = 900
TARGET: Final = 10.0

LISTS, ARRAYS, ROUNDED = "emberd, lists", "emberd, numpy", "emberd, numpy, float16"
THEIRS, DICT = "LangChain CacheBackedEmbeddings", "a dict in memory, numpy"

_opened = [0]


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open":
        _opened[0] += 1


class Canned(Embeddings):
    """Vectors that take no time to compute."""

    def __init__(self, texts: list[str], vectors: np.ndarray) -> None:
        self._places = {text: place for place, text in enumerate(texts)}
        self._lists = vectors.tolist()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the vectors of ``texts``."""
        return [self._lists[self._places[text]] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of ``text``."""
        return self.embed_documents([text])[0]


class Nothing(Embeddings):
    """An embedder that must not be asked."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Refuse."""
        raise AssertionError(f"{len(texts)} texts were not in the cache")

    embed_query = embed_documents  # type: ignore[assignment]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Texts of a paragraph's length."""
    return [f"Passage {number}. " + "Many rivers flow into it. " * 20 for number in range(VECTORS)]


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """A unit vector a text."""
    made = np.random.default_rng(0).standard_normal((VECTORS, DIMENSIONS), np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A place for a gigabyte, which is gone afterwards."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@dataclass(frozen=True, slots=True)
class Taken:
    """What one way takes: seconds by the clock and of the processor, and files opened."""

    seconds: float
    cpu: float
    files: int


def measure(work: Callable[[], object], rounds: int = 1) -> Taken:
    """Return what ``work`` takes, at best; of files, those that Python opens."""
    times, before = [], _opened[0]
    for _ in range(rounds):
        began, began_cpu = time.perf_counter(), time.process_time()
        kept = work()
        times.append((time.perf_counter() - began, time.process_time() - began_cpu))
        del kept
    seconds, cpu = zip(*times, strict=True)
    return Taken(min(seconds), min(cpu), (_opened[0] - before) // rounds)


def sqlite_files(path: Path) -> int:
    """Return how many files of the database this process has open."""
    links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    held = {os.readlink(link) for link in links if os.path.islink(link)}
    return len([name for name in held if name in {str(path), f"{path}-wal", f"{path}-shm"}])


def put(cache: Cache, texts: list[str], vectors: np.ndarray) -> None:
    """Put vectors as they come from a server, a request's at a time."""
    for first in range(0, len(texts), BATCH):
        some = texts[first : first + BATCH]
        cache.put_many(keys("bench", some), vectors[first : first + BATCH])


def get(cache: Cache, texts: list[str]) -> np.ndarray:
    """Return the vectors of texts that must all be there."""
    found = cache.get_many(keys("bench", texts), DIMENSIONS)
    assert found.mask.all()
    return found.vectors


@pytest.mark.timeout(SECONDS)
def test_hits_and_the_first_pass(texts: list[str], vectors: np.ndarray, folder: Path) -> None:
    sys.addaudithook(_watch)
    ours = open_cache(f"sqlite://{folder}/ours.db")
    rounded = open_cache(f"sqlite://{folder}/rounded.db?dtype=float16")
    store = LocalFileStore(str(folder / "theirs"))

    def theirs(embedder: Embeddings) -> CacheBackedEmbeddings:
        return CacheBackedEmbeddings.from_bytes_store(
            embedder, store, namespace="bench", batch_size=BATCH, key_encoder="blake2b"
        )

    first = {
        "emberd": measure(lambda: put(ours, texts, vectors)),
        "emberd, float16": measure(lambda: put(rounded, texts, vectors)),
    }
    first[THEIRS] = measure(partial(theirs(Canned(texts, vectors)).embed_documents, texts))

    kept = dict(zip(texts, vectors, strict=True))
    reading = theirs(Nothing())
    np.testing.assert_array_equal(get(ours, texts), vectors)
    np.testing.assert_allclose(get(rounded, texts), vectors, atol=1e-4)
    np.testing.assert_allclose(reading.embed_documents(texts[:9]), vectors[:9], atol=1e-7)
    extra = sqlite_files(folder / "ours.db")
    hits = {
        LISTS: measure(lambda: to_lists(get(ours, texts)), ROUNDS),
        ARRAYS: measure(lambda: get(ours, texts), ROUNDS),
        ROUNDED: measure(lambda: get(rounded, texts), ROUNDS),
        THEIRS: measure(lambda: reading.embed_documents(texts)),
        DICT: measure(lambda: np.stack([kept[text] for text in texts]), ROUNDS),
    }
    assert extra == 3
    publish(_table(hits, first, extra))
    ours.close()
    rounded.close()


def _table(hits: dict[str, Taken], first: dict[str, Taken], extra: int) -> Table:
    rows = [
        _row(f"{what}: {name}", taken, extra if "emberd" in name else 0)
        for what, ways in (("hits", hits), ("first pass", first))
        for name, taken in ways.items()
    ]
    ours, theirs = hits[LISTS], hits[THEIRS]
    return Table(
        name="cache",
        title=f"{VECTORS:,} vectors of {DIMENSIONS:,} that were computed before",
        rows=rows,
        ratios=[
            Ratio("hits, lists: emberd / LangChain", theirs.seconds / ours.seconds, TARGET),
            Ratio("hits, lists, by processor time", theirs.cpu / ours.cpu),
            Ratio("hits, numpy: emberd / LangChain", theirs.seconds / hits[ARRAYS].seconds, TARGET),
            Ratio("files opened: LangChain / emberd", theirs.files / (ours.files + extra), TARGET),
            Ratio(
                "first pass: emberd / LangChain", first[THEIRS].seconds / first["emberd"].seconds
            ),
            Ratio("hits, numpy: emberd / a dict", hits[DICT].seconds / hits[ARRAYS].seconds),
        ],
        packages=["langchain-classic", "numpy"],
        notes=[
            f"Best of {ROUNDS} rounds; the first pass and LangChain's of one, for their time.",
            f"Of emberd's files, {extra} are SQLite's, the others its lock, opened for each use.",
            "All read from the system's file cache; none waits for the disk when it writes.",
        ],
    )


def _row(name: str, taken: Taken, extra: int) -> Row:
    figures = {"s": taken.seconds, "CPU s": taken.cpu, "vectors/s": VECTORS / taken.seconds}
    return Row(name, {**figures, "files": float(taken.files + extra)})

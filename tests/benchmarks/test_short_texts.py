"""What 1,000 short texts cost in each process of SGLang, with emberd's settings and without.

Two servers run at the same time, with vectors as long as those of Qwen3-Embedding-4B and a model of
one thin layer; the only difference is the settings that save CPU time. They take turns. A bare
client then asks the first one for texts and for their token ids. Nothing here asserts a time.
Needs ``make engines``.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import pytest

import server_cpu
from benchmarks import rivals
from benchmarks.record import Ratio, Row, Table, publish
from emberd import Embedder
from emberd.verified_manager import Manager
from real.engines import embedder_for, python_of, run
from source_tree import ROOT

COUNT: Final = 2048
TOKENS: Final = 16
ROUNDS: Final = 4
COMPARED: Final = 64  # texts of one request
LARGEST_DIFFERENCE: Final = 1e-6
SECONDS: Final = 1200
BATCH: Final = 64
CONNECTIONS: Final = 2
CHECKPOINT: Final = ROOT / "tests" / "gpu" / "engine_side" / "checkpoint.py"
# As SGLang has it by itself: pickle, and Python's own thresholds.
PICKLE: Final = "SGLANG_USE_PICKLE_IPC"
PLAIN: Final = "--gc-threshold 700 10 10"
AFTER: Final = "Embedder"
BEFORE: Final = "Embedder, without the settings"
TEXTS: Final = "bare HTTP, texts"
IDS: Final = "bare HTTP, token ids"

Way = Callable[[], Any]


@pytest.fixture(scope="module")
def checkpoint(engines_of_this_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model and its texts."""
    folder = tmp_path_factory.mktemp("thin")
    asked = {"shape": "thin", "device": "cpu", "texts": {TOKENS: COUNT}}
    asked |= {"documents": ["a text"], "queries": []}
    run(python_of("sglang"), CHECKPOINT, str(folder), stdin=json.dumps(asked))
    return folder


@contextmanager
def served(model: Path, home: Path) -> Iterator[Embedder]:
    """Give an embedder whose server runs, and stop both."""
    manager = Manager(home)
    embedder = embedder_for(model, manager, query_instruction="")
    try:
        embedder.ensure()
        yield embedder
    finally:
        embedder.close()
        manager.stop()


@pytest.mark.timeout(SECONDS)
def test_cpu_seconds_of_short_texts(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = json.loads((checkpoint / "texts.json").read_text())[str(TOKENS)]
    model, homes = checkpoint / "model", (tmp_path / "after", tmp_path / "before")
    with ExitStack() as stack:
        after = stack.enter_context(served(model, homes[0]))
        monkeypatch.setenv(PICKLE, "1")
        monkeypatch.setenv("EMBERD_ENGINE_ARGS", PLAIN)
        before = stack.enter_context(served(model, homes[1]))
        found = _in_turn(after, before, homes, texts)
    rows = [Row(name, _medians(rounds)) for name, rounds in found.items()]
    of = {row.name: row.figures for row in rows}
    ratios = [
        Ratio("main process, before / after", of[BEFORE]["main"] / of[AFTER]["main"], 2.5),
        Ratio("main process, texts / token ids", of[TEXTS]["main"] / of[IDS]["main"]),
        Ratio("texts/s, after / before", of[AFTER]["texts/s"] / of[BEFORE]["texts/s"]),
    ]
    title = f"CPU seconds for 1,000 texts of {TOKENS} tokens, {COUNT} texts, {ROUNDS} rounds"
    note = "Servers and client share the cores; the scheduler's figure is mostly arithmetic."
    publish(Table("short-texts", title, rows, ratios, notes=(note,)))


def _in_turn(
    after: Embedder, before: Embedder, homes: tuple[Path, Path], texts: list[str]
) -> dict[str, list[dict[str, float]]]:
    place = _place(after)
    bare: Any = rivals.Raw(place, CONNECTIONS, BATCH)
    ids = _token_ids(place, texts)
    assert {len(each) for each in ids} == {TOKENS}
    ways: dict[str, tuple[Path, Way]] = {
        AFTER: (homes[0], lambda: after.embed_documents(texts)),
        BEFORE: (homes[1], lambda: before.embed_documents(texts)),
        TEXTS: (homes[0], lambda: bare.embed(texts)),
        IDS: (homes[0], lambda: bare.embed(ids)),
    }
    some = texts[:COMPARED]
    expected = before.embed_documents(some)
    assert np.abs(after.embed_documents(some) - expected).max() <= LARGEST_DIFFERENCE
    same = [bare.embed(given[:COMPARED]) for given in (texts, ids)]
    assert np.abs(same[0] - same[1]).max() <= LARGEST_DIFFERENCE
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for number in range(ROUNDS + 1):
        for name, (home, way) in ways.items():
            figures = server_cpu.used_by(home, way, COUNT)
            if number > 0:
                found[name].append(figures)
    return found


def _place(embedder: Embedder) -> rivals.Place:
    endpoint = embedder.endpoint()
    return rivals.Place(endpoint.base_url, endpoint.model, endpoint.api_key or "none")


def _token_ids(place: rivals.Place, texts: list[str]) -> list[list[int]]:
    headers = {"authorization": f"Bearer {place.api_key}"}
    with httpx.Client(headers=headers, timeout=60.0) as client:
        replies = (
            client.post(f"{place.base_url}/tokenize", json={"model": place.model, "prompt": text})
            for text in texts
        )
        return [reply.raise_for_status().json()["tokens"] for reply in replies]


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}

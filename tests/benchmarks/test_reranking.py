"""Pairs a second of a reranker: with emberd, by hand with one request a pair, and without a server.

One query and many documents, as after a retrieval; the same weights and prompts for all. SGLang
serves in bfloat16; without a server, the weights are in the number format of the engine
``transformers``. ``make bench`` prints the figures. Nothing here asserts a time. Needs ``make
engines``.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import pytest

from benchmarks import rivals
from benchmarks.record import Ratio, Row, Table, publish
from emberd import Reranker, installs, probe
from emberd.prompts import rerank_frame
from emberd.system import process_env
from emberd.verified_manager import Manager
from real.engines import HERE, engine_side, python_of, with_sentence_transformers

COUNT: Final = 128
ROUNDS: Final = 3
BATCH: Final = 32  # CrossEncoder's own default
LAYERS, HIDDEN = 4, 256
SECONDS: Final = 1800
START_S: Final = 480.0
APART: Final = 0.05  # of scores in bfloat16
QUERY: Final = "how does a server answer many requests at once"
DOCUMENTS: Final = rivals.make_texts(COUNT, 5, 60)
CARD, CROSS = "model card, in process", "CrossEncoder, in process"
HAND, ALL = "by hand, a request a pair", "by hand, all pairs in a request"
ENGINES: Final = ("sglang", "transformers")
NOTES: Final = (
    "Client, server and rivals on the same cores, one at a time; random weights, a small model.",
    "emberd's servers compute the common beginning of prompts once; the others for each pair.",
)

Way = Callable[[], tuple[float, list[float]]]
"""Returns the seconds that the scores of all documents took, and the scores."""


@pytest.fixture(scope="module")
def model(engines_of_this_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reranker with random weights."""
    folder = tmp_path_factory.mktemp("models") / "reranker"
    with engine_side(python_of("transformers")) as side:
        return side.make_tiny_reranker(folder, layers=LAYERS, hidden=HIDDEN)


@pytest.fixture(scope="module")
def rerankers(
    model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Reranker]]:
    """A reranker for each engine, whose server runs."""
    managers = {name: Manager(tmp_path_factory.mktemp(name)) for name in ENGINES}
    made = {
        name: Reranker(model, engine=name, device="cpu", start_timeout=START_S, manager=manager)
        for name, manager in managers.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights may prefer the wrong document
        for reranker in made.values():
            reranker.ensure()
    yield made
    for manager in managers.values():
        manager.stop()


class InProcess:
    """The rivals without a server, in a process of their own."""

    def __init__(self, python: str, model: Path, dtype: str) -> None:
        threads = str(os.cpu_count())
        environment = process_env.for_server_of(python)
        # As the engine's server sets it for itself.
        environment |= {"OMP_NUM_THREADS": threads, "GOMP_SPINCOUNT": "1000"}
        self._process = subprocess.Popen(
            [python, str(HERE / "scorers.py"), str(model), dtype, str(BATCH)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == threads

    def score(self, way: str) -> tuple[float, list[float]]:
        """Score all documents in one of the ways of ``scorers.py``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([way, QUERY, DOCUMENTS]) + "\n")
        self._process.stdin.flush()
        seconds, scores = json.loads(self._process.stdout.readline())
        return seconds, scores

    def end(self) -> None:
        """End the process."""
        self._process.communicate()


@pytest.fixture(scope="module")
def in_process(
    model: Path, rerankers: dict[str, Reranker], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[InProcess]:
    """The rivals without a server, with the number format of the engine ``transformers``."""
    endpoint = rerankers["transformers"].endpoint()
    reply = probe.get(endpoint.url, probe.SERVER_INFO, endpoint.api_key)
    assert reply is not None
    engine = installs.locate("transformers")
    assert engine is not None
    python = with_sentence_transformers(engine, tmp_path_factory.mktemp("sentences"))
    rivals = InProcess(python, model, str(reply.json()["dtype"]))
    yield rivals
    rivals.end()


def _timed(score: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    scores = score()
    return time.perf_counter() - began, scores


def _by_hand(reranker: Reranker, most: int) -> list[float]:
    """Score with ``most`` pairs in a request, one request after another."""
    endpoint = reranker.endpoint()
    prompts = [document.join(rerank_frame(QUERY)) for document in DOCUMENTS]
    body: dict[str, Any] = {
        "model": endpoint.model,
        "query": "",
        "label_token_ids": [*endpoint.labels],
        "apply_softmax": True,
    }
    key = {"authorization": f"Bearer {endpoint.api_key}"}
    scores: list[float] = []
    with httpx.Client(base_url=endpoint.url, headers=key, timeout=SECONDS) as client:
        for start in range(0, COUNT, most):
            request = {**body, "items": prompts[start : start + most]}
            reply = client.post(endpoint.scores_route, json=request)
            scores += [pair[0] for pair in reply.json()["scores"]]
    return scores


@pytest.mark.timeout(SECONDS)
def test_pairs_a_second_of_rerankers(rerankers: dict[str, Reranker], in_process: InProcess) -> None:
    ways: dict[str, Way] = {}
    for engine, reranker in rerankers.items():
        scorers: dict[str, Callable[[], Any]] = {
            "emberd": functools.partial(reranker.scores, QUERY, DOCUMENTS),
            HAND: functools.partial(_by_hand, reranker, 1),
            ALL: functools.partial(_by_hand, reranker, COUNT),
        }
        for name, score in scorers.items():
            ways[f"{engine}: {name}"] = functools.partial(_timed, score)
    ways[CARD] = functools.partial(in_process.score, "card")
    ways[CROSS] = functools.partial(in_process.score, "cross-encoder")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    first: Any = None
    for number in range(ROUNDS + 1):  # the first round warms all
        for name, way in ways.items():
            taken, scores = way()
            first = scores if first is None else first
            assert np.abs(np.array(scores) - np.array(first)).max() < APART, name
            if number:
                seconds[name].append(taken)
    rows = [
        Row(
            name,
            {
                "min": COUNT / max(taken),
                "median": COUNT / statistics.median(taken),
                "max": COUNT / min(taken),
            },
        )
        for name, taken in seconds.items()
    ]
    medians = {row.name: row.figures["median"] for row in rows}
    ratios = [
        Ratio(f"{ours} / {other}", medians[ours] / medians[other])
        for engine in ENGINES
        for ours in [f"{engine}: emberd"]
        for other in (f"{engine}: {HAND}", f"{engine}: {ALL}", CARD, CROSS)
    ]
    publish(
        Table(
            name="reranking",
            title=f"pairs/s, 1 query and {COUNT} documents on the CPU, {ROUNDS} rounds in turn",
            rows=rows,
            ratios=ratios,
            packages=("httpx", "numpy"),
            notes=NOTES,
        )
    )

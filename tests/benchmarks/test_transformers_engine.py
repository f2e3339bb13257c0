"""Texts a second through the transformers engine, beside sentence-transformers on the same torch.

``make bench`` prints the figures. Ours are those of a user: an ``Embedder`` in this process, HTTP,
the server in another; theirs are ``SentenceTransformer.encode`` in its own process. Both have the
same weights, the same precision and the same number of threads, and take turns.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from emberd import Embedder, installs, probe
from emberd.env import Places
from emberd.system import process_env
from emberd.verified_manager import Manager
from real.engines import HERE, run, with_sentence_transformers

_ENGINES: Final = Places.resolve().engines  # before the session's environment is cleaned
_LAYERS, _HIDDEN = "4", "1024"  # the width of Qwen3-Embedding-0.6B, a seventh of its depth
_COUNT: Final = 256
_WORDS: Final = (2, 4, 8, 16, 32, 64)
_ROUNDS: Final = 4
_LEAST_COSINE: Final = 0.999
_LEAST_RATIO: Final = 1.0


@pytest.fixture(scope="module")
def engine(_session_environment: None) -> Iterator[installs.Interpreter]:
    """The interpreter that has transformers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBERD_ENGINES", _ENGINES)
        found = installs.locate("transformers")
        assert found is not None, "Not installed here. Run: emberd engine install transformers"
        yield found


@pytest.fixture(scope="module")
def with_sentences(engine: installs.Interpreter, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that has sentence-transformers, and torch from the engine's environment."""
    return with_sentence_transformers(engine, tmp_path_factory.mktemp("sentences"))


@pytest.fixture(scope="module")
def model(engine: installs.Interpreter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights."""
    folder = tmp_path_factory.mktemp("models") / "four-layers"
    run(engine.python, HERE / "make_tiny.py", str(folder), _LAYERS, _HIDDEN)
    return folder


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Texts of very different length, as documents are."""
    dice = random.Random(1)
    words = [
        "the",
        "retrieval",
        "of",
        "passages",
        "that",
        "answer",
        "a",
        "question",
        "looks",
        "up",
        "vector",
        "index",
        "text",
    ]
    return [" ".join(dice.choices(words, k=dice.choice(_WORDS))) for _ in range(_COUNT)]


@pytest.fixture(scope="module")
def ours(
    engine: installs.Interpreter, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Embedder]:
    """An embedder whose server runs."""
    manager = Manager(tmp_path_factory.mktemp("home"))
    made = Embedder(model, engine="transformers", device="cpu", manager=manager)
    made.ensure()
    yield made
    made.close()
    manager.stop()


class Theirs:
    """sentence-transformers in a separate process."""

    def __init__(self, python: str, model: Path, dtype: str, threads: str) -> None:
        environment = process_env.for_server_of(python)
        # As the server sets it for itself: else the figures are those of OpenMP's waiting.
        environment |= {"OMP_NUM_THREADS": threads, "GOMP_SPINCOUNT": "1000"}
        self._process = subprocess.Popen(
            [python, str(HERE / "sentences.py"), str(model), dtype],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == threads

    def encode(self, texts: list[str]) -> dict[str, Any]:
        """Return ``seconds`` and the first ``vectors``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(texts) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def end(self) -> None:
        """End the process."""
        self._process.communicate()


def _dtype(embedder: Embedder) -> str:
    endpoint = embedder.endpoint()
    reply = probe.get(endpoint.url, "/server_info", endpoint.api_key)
    assert reply is not None
    return str(reply.json()["dtype"])


def _seconds(embedder: Embedder, texts: list[str]) -> tuple[float, Any]:
    began = time.perf_counter()
    vectors = embedder.embed_documents(texts)
    return time.perf_counter() - began, vectors


@pytest.mark.timeout(900)
def test_texts_a_second_beside_sentence_transformers(
    ours: Embedder, with_sentences: str, model: Path, texts: list[str]
) -> None:
    dtype, threads = _dtype(ours), str(os.cpu_count())
    theirs = Theirs(with_sentences, model, dtype, threads)
    timings: tuple[list[float], list[float]] = ([], [])
    for _ in range(_ROUNDS + 1):  # the first round warms both
        seconds, vectors = _seconds(ours, texts)
        answer = theirs.encode(texts)
        timings[0].append(seconds)
        timings[1].append(answer["seconds"])
    theirs.end()
    cosines = np.sum(vectors[:3] * np.array(answer["vectors"]), axis=1)
    ratios = [b / a for a, b in zip(*timings, strict=True)][1:]
    print(f"\ntexts/s, {_COUNT} texts, {dtype}, {threads} threads     min    median       max")
    for name, taken in zip(("emberd, over HTTP", "sentence-transformers"), timings, strict=True):
        rates = [_COUNT / seconds for seconds in taken[1:]]
        print(f"  {name:<32} {min(rates):9.1f} {statistics.median(rates):9.1f} {max(rates):9.1f}")
    listed = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"  ratio, round by round: {listed}; median {statistics.median(ratios):.2f}")
    assert cosines.min() > _LEAST_COSINE
    assert statistics.median(ratios) >= _LEAST_RATIO

"""The part about having no server: sentence-transformers in a separate process."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from gpu import compare
from gpu.bench import Bench, foreign_environment
from gpu.machine import SHORT_TOKENS, documents
from gpu.result import Report, SkippedError, Why

_BATCHES: Final = {16: (128, 512), 256: (32, 128), 2000: (4, 16)}
_TRIED: Final = 4  # a quarter of the texts
_SHOWN: Final = 3
_LEAST_COSINE: Final = 0.99
_MS: Final = 1000
_HAS: Final = "import importlib.util as u; print(u.find_spec('sentence_transformers') is not None)"
_LOOK_S: Final = 60.0


def in_process(bench: Bench, report: Report) -> None:
    """Embed the same texts in one process, without a server, at the best of some batch sizes."""
    python = _python(bench)
    bench.manager.stop()
    found: dict[str, Any] = {}
    with _Library(bench, python).running() as library:
        report.figure("version", library.version)
        for tokens, count in bench.sizes.bulk.items():
            texts = bench.texts(tokens)[:count]
            tried = texts[: max(1, count // _TRIED)]
            library.seconds(tried, _BATCHES[tokens][0])  # the first of its length is slow
            size = min(_BATCHES[tokens], key=lambda n: library.seconds(tried, n))
            rate = len(texts) / library.seconds(texts, size)
            theirs = bench.figures("bulk").get("bulk", {}).get(str(tokens), {})
            ours = theirs.get("texts_per_s", {}).get("Embedder")
            found[str(tokens)] = {
                "texts_per_s": round(rate, 1),
                "tokens_per_s": round(rate * tokens),
                "batch_size": size,
                "Embedder / sentence-transformers": round(ours / rate, 2) if ours else None,
            }
            report.figure("bulk", found)
        queries = bench.texts(SHORT_TOKENS)[: bench.sizes.queries]
        taken = sorted(library.each(queries))
        report.figure("query_ms_median", round(_MS * statistics.median(taken), 2))
        _compare(bench, report, library)
    rates = ", ".join(f"{n} tokens {each['texts_per_s']:,.0f}" for n, each in found.items())
    report.summary = (
        f"{library.version}, texts/s: {rates}; one query {report.figures['query_ms_median']:.1f} ms"
    )


class _Library:
    """sentence-transformers in another interpreter, asked by lines of JSON."""

    def __init__(self, bench: Bench, python: str) -> None:
        self._command = bench.script("sentences.py", bench.model, bench.device, python=python)
        self.version = ""
        self.vectors: list[list[float]] = []

    @contextmanager
    def running(self) -> Iterator[_Library]:
        """Start it, and end it."""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=foreign_environment(),
        )
        try:
            self.version = f"sentence-transformers {self._read()['version']}"
            yield self
        finally:
            self._process.kill()
            self._process.wait()

    def seconds(self, texts: list[str], batch_size: int) -> float:
        """Return how long one call for all the texts takes."""
        return self._ask(texts, batch_size, one_by_one=False)[0]

    def each(self, texts: list[str]) -> list[float]:
        """Return how long each text takes by itself."""
        return self._ask(texts, 1, one_by_one=True)

    def _ask(self, texts: list[str], batch_size: int, *, one_by_one: bool) -> list[float]:
        asked = {"texts": texts, "batch_size": batch_size, "one_by_one": one_by_one}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = self._read()
        self.vectors = answer["vectors"]
        seconds: list[float] = answer["seconds"]
        return seconds

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"it ended with exit code {self._process.wait()}")
        return json.loads(line)


def _compare(bench: Bench, report: Report, library: _Library) -> None:
    """Require the vectors of the reference: a rate of other vectors would mean nothing."""
    library.seconds(documents(bench)[:_SHOWN], _SHOWN)
    with np.load(bench.folder / "reference.npz") as kept:
        exact = kept["float32"][:_SHOWN]
    least = compare.spread(exact, np.array(library.vectors, np.float32))["min"]
    report.figure("cosine_to_float32", least)
    report.require(least >= _LEAST_COSINE, f"its vectors are others: cosine {least}")


def _python(bench: Bench) -> str:
    """Return an interpreter that has it.

    Raises:
        SkippedError: None has.
    """
    for python in (bench.python, *bench.others):
        done = subprocess.run(
            [python, "-c", _HAS],
            capture_output=True,
            text=True,
            env=foreign_environment(),
            timeout=_LOOK_S,
        )
        if done.stdout.strip() == "True":
            return python
    raise SkippedError("no interpreter here has sentence-transformers", Why.NOT_HERE)

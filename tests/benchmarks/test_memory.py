"""How much memory a process takes while a million texts stream through it.

The texts come from a generator and the vectors are dropped. A separate process does it all, and
says how much it held after the first thousand vectors, and at most afterwards. ``make bench``
prints the figures. Nothing here asserts a size.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Final

import pytest

from benchmarks.record import Ratio, Row, Table, publish
from canned_server import DIMENSIONS, MODEL, canned_server
from managed import environment

TEXTS: Final = 1_000_000
BATCH: Final = 1000  # vectors between two looks at the memory
MOST_MB: Final = 200.0
SECONDS: Final = 900

PROGRAM: Final = f"""
import json, sys, time
import psutil
from emberd import Embedder

BYTES_IN_MB = 1_000_000
me = psutil.Process()
embedder = Embedder({MODEL!r}, base_url=sys.argv[1])
texts = (f"{{number}} is a short text" for number in range({TEXTS}))
began, done, first, most = time.perf_counter(), 0, None, 0
for vector in embedder.iter_documents(texts):
    done += 1
    if done % {BATCH} == 0:
        now = me.memory_info().rss
        first = first or now
        most = max(most, now)
seconds = time.perf_counter() - began
embedder.close()
print(json.dumps({{
    "texts": done, "first": first / BYTES_IN_MB, "most": most / BYTES_IN_MB, "seconds": seconds,
}}))
"""


@pytest.mark.timeout(SECONDS)
def test_memory_while_a_million_texts_stream() -> None:
    with canned_server() as url:
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM, url],
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
        )
    found = json.loads(ended.stdout)
    assert found["texts"] == TEXTS
    growth = found["most"] - found["first"]
    figures = {"first batch, MB": found["first"], "at most, MB": found["most"]}
    publish(
        Table(
            name="memory",
            title=f"memory while {TEXTS:,} short texts stream, vectors of {DIMENSIONS}",
            rows=[
                Row(
                    "Embedder.iter_documents",
                    {**figures, "texts/s": TEXTS / found["seconds"]},
                )
            ],
            ratios=[
                Ratio("growth after the first batch", growth, MOST_MB, at_most=True, unit=" MB")
            ],
        )
    )

"""What ``emberd embed`` costs beside the embedding: rows a second and memory, with a stand-in.

``make bench`` prints the figures. Nothing here asserts a time.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import pyarrow as pa
import pytest
from pyarrow import parquet

from benchmarks.record import Row, Table, publish
from managed import environment

ROWS: Final = 100_000
DIMENSIONS: Final = 1024

# The vectors are there at once: what is left is reading, parts and output.
_RUN: Final = f"""
import json, resource, sys, time
from pathlib import Path
import numpy as np
import bulk_standin
vectors = np.random.default_rng(7).standard_normal((1000, {DIMENSIONS}), np.float32)
def embed(texts):
    for number, _ in enumerate(texts):
        yield vectors[number % 1000]
def most_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
seen = []
def watch(progress):
    if progress.done * 10 >= progress.total * len(seen):
        seen.append(most_mb())
wanted = bulk_standin.request(Path(sys.argv[1]), Path(sys.argv[2]), save_every_s=30.0)
began = time.perf_counter()
bulk_standin.run_request(wanted, embed, {DIMENSIONS}, watch)
seconds = time.perf_counter() - began
print(json.dumps([{ROWS} / seconds, seen[1], most_mb()]))
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bulk")
    rows = [{"id": n, "text": f"row {n} " + "x" * 100} for n in range(ROWS)]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "in.parquet")
    (folder / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return {"Parquet": folder / "in.parquet", "JSON lines": folder / "in.jsonl"}


@pytest.mark.timeout(600)
def test_rows_a_second_and_memory(sources: dict[str, Path], tmp_path: Path) -> None:
    rows = []
    for kind, source in sources.items():
        for name in ("out.parquet", "out", "out.npy"):
            done = subprocess.run(
                [
                    sys.executable,
                    "-c",
                    _RUN,
                    str(source),
                    str(tmp_path / f"{source.suffix}-{name}"),
                ],
                env=environment(),
                capture_output=True,
                text=True,
                check=True,
            )
            speed, early, most = json.loads(done.stdout)
            figures = {"rows/s": speed, "MB at 10 %": early, "MB at most": most}
            rows.append(Row(f"{kind} to {name}", figures))
    publish(
        Table(
            "bulk",
            f"emberd embed, {ROWS:,} rows, {DIMENSIONS} dimensions, vectors that cost nothing",
            rows,
            packages=("pyarrow",),
        )
    )

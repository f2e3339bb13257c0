"""A run that is killed, wherever it is, and given again ends as one that was not."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import bulk_standin
from bulk_standin import Runs

KILLED: Final = -9
ROWS: Final = 500  # two chunks, so two parts


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    with bulk_standin.runs() as opened:
        yield opened


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    rows = [{"n": n, "text": f"text {n}" if n % 97 else None} for n in range(ROWS)]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "in.parquet")
    (folder / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return {"parquet": folder / "in.parquet", "jsonl": folder / "in.jsonl"}


def _content(output: Path) -> tuple[Any, ...]:
    rejects = bulk_standin.rejects(output)
    if output.suffix == ".npy":
        rows = np.load(output.with_suffix(".rows.npy"))
        return np.load(output).tolist(), rows.tolist(), rejects
    if output.suffix == ".jsonl":
        return output.read_bytes(), rejects
    return parquet.read_table(output).to_pylist(), rejects


def _was_at_its_end(output: Path) -> bool:
    """Return whether a run had nothing more to do than to remove a folder with its lock."""
    parts = output.with_name(f"{output.name}.parts")
    return output.exists() and (not parts.exists() or {*os.listdir(parts)} <= {"lock"})


def _remove(output: Path) -> None:
    for path in output.parent.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("kind", "name", "stride"),
    [
        ("parquet", "out.npy", 1),
        ("jsonl", "out", 1),
        # Its parts become the output by links, two steps in succession: one of them is tried.
        ("parquet", "out", 2),
        # The same steps, in other formats.
        ("parquet", "out.parquet", 5),
        ("jsonl", "out.jsonl", 5),
    ],
)
def test_a_kill_before_any_step_changes_nothing_of_the_output(
    runs: Runs, sources: dict[str, Path], tmp_path: Path, kind: str, name: str, stride: int
) -> None:
    output = tmp_path / name
    assert runs(sources[kind], output) == 0
    expected = _content(output)
    names = sorted(path.name for path in tmp_path.iterdir())
    dice = random.Random(name)
    for step in itertools.count(dice.randint(1, stride), stride):
        _remove(output)
        if runs(sources[kind], output, kill_at=step) != KILLED:
            break  # it has fewer steps
        if dice.random() < 0.3 and not _was_at_its_end(output):
            runs(sources[kind], output, kill_at=dice.randrange(1, 30))
        if not _was_at_its_end(output):
            assert runs(sources[kind], output) == 0
            assert sorted(path.name for path in tmp_path.iterdir()) == names
        assert _content(output) == expected, f"killed before step {step}"
    assert step > 30

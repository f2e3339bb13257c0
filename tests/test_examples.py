"""The examples run as they stand, and find what they are asked for."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import managed
from managed import stopped_at_the_end
from source_tree import ROOT

__all__ = ["stopped_at_the_end"]

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
_FOUND = [
    ("Why is the Baltic almost fresh water?", "The Baltic Sea has little salt"),
    ("¿Quién ganó el Nobel en dos ciencias?", "Marie Curie"),
    ("面团要发酵多久？", "Sourdough rises slowly"),
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_finds_the_passages(example: object) -> None:
    done = subprocess.run(
        [sys.executable, str(example)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=managed.environment(PYTHONIOENCODING="utf-8"),
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    hits = re.findall(r"^(\S.*)\n  0\.\d{3}  (.*)$", done.stdout, re.MULTILINE)
    assert [query for query, _ in hits] == [query for query, _ in _FOUND]
    assert all(hit.startswith(start) for (_, hit), (_, start) in zip(hits, _FOUND, strict=True))


def test_there_is_one_short_example_for_each_framework() -> None:
    lines = {path.stem: len(path.read_text(encoding="utf-8").splitlines()) for path in EXAMPLES}
    assert sorted(lines) == ["langchain_example", "llama_index_example"]
    assert max(lines.values()) <= 40


@pytest.mark.parametrize("number", range(2))
def test_the_code_of_the_readme_runs_as_it_stands(number: int) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2, "another block in the README wants its place here"
    done = subprocess.run(
        [sys.executable, "-c", blocks[number]],
        capture_output=True,
        text=True,
        env=managed.environment(),
    )
    assert (done.returncode, done.stdout) == (0, "Bread rises because yeast makes gas.\n"), (
        done.stderr
    )

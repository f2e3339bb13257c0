"""The demo program: its parts, and one whole run with the real engine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import numpy as np
import pytest

import managed
import passages
import recall
from command import TIMEOUT_S, run_program
from emberd import SettingError
from source_tree import ROOT

DEMO: Final = ROOT / "examples/demo/demo.py"

stopped_at_the_end = managed.stopped_at_the_end


def test_passages_of_python_are_real_short_and_distinct() -> None:
    found = passages.of_python(100)
    texts = [passage.text for passage in found]
    assert len(set(texts)) == len({passage.id for passage in found}) == 100
    assert all(60 <= len(text) <= 400 and "\n" not in text for text in texts)
    assert len({passage.source.partition(".")[0] for passage in found}) > 90


def test_paragraphs_of_a_folder_are_split_at_the_limit(tmp_path: Path) -> None:
    chinese = "".join(map(chr, range(0x4E00, 0x4E64)))
    (tmp_path / "a.md").write_text(f"{'word ' * 40}\n\nshort\n\n{chinese}")
    (tmp_path / "b.bin").write_text("x" * 200)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "c.txt").write_text("y" * 200)
    found = passages.of_folder(tmp_path, 10, max_bytes=120)
    assert {passage.source for passage in found} == {"a.md"}
    assert all(len(passage.text.encode()) <= 120 for passage in found)
    joined = "".join(passage.text for passage in found)
    assert joined.count("word") == 40
    assert chinese in joined


def test_a_folder_without_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no paragraph"):
        passages.of_folder(tmp_path, 10, 100)


def test_multilingual_set_is_complete() -> None:
    known = passages.multilingual()
    ids = {passage.id for passage in known.passages}
    assert (len(ids), len(known.questions)) == (60, 30)
    assert {question.answer for question in known.questions} <= ids
    assert {"zh", "code"} <= set(known.languages)
    assert len(known.languages) >= 9


def test_recall_counts_answers_among_the_nearest() -> None:
    vectors = np.eye(8, dtype=np.float32)
    questions = vectors[[0, 1, 2, 3]] + 0.5 * vectors[[0, 1, 4, 5]]
    (row,) = recall.measure(
        vectors, questions, vectors[[7, 7, 7, 7]], [0, 1, 4, 6], min_dimensions=8
    )
    # Answers of the questions: nearest, nearest, second, tied last.
    assert row == recall.Row(8, (0.5, 1.0), (0.0, 1.0))


def test_recall_is_measured_at_three_lengths() -> None:
    vectors = np.eye(8, dtype=np.float32) + 0.1
    rows = recall.measure(vectors, vectors, vectors, list(range(8)), min_dimensions=1)
    assert [row.dimensions for row in rows] == [8, 4, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--docs", "no-such-folder"), "no-such-folder is not a folder"),
        (("--passages", "0"), "must be at least 1"),
        (("a/model",), "unrecognized arguments"),
    ],
)
def test_wrong_usage_is_an_error(arguments: tuple[str, ...], message: str) -> None:
    done = run_program(str(DEMO), *arguments, environment=managed.environment())
    assert done.code == 2
    assert message in done.err


@pytest.fixture(scope="module")
def output() -> str:
    """The output of one run with the session's server."""
    done = subprocess.run(
        [sys.executable, str(DEMO), "--model", managed.MODEL, "--passages", "4"],
        capture_output=True,
        text=True,
        env=managed.environment(PYTHONIOENCODING="utf-8"),
        timeout=TIMEOUT_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_demo_warns_that_vectors_are_not_qwen3(output: str) -> None:
    assert "they are NOT Qwen3 vectors" in output


def test_the_demo_indexes_everything_with_both_frameworks(output: str) -> None:
    for name in ("LangChain", "LlamaIndex"):
        assert re.search(rf"{name} +64 passages in [\d.]+ s, \d+ passages/s", output)


def test_demo_reports_the_same_vectors_in_both_frameworks(output: str) -> None:
    match = re.search(r"same vectors, of 64 passages and 7 questions: .* ([\d.e+-]+)\.", output)
    assert match is not None
    assert float(match[1]) <= managed.SAME


def test_the_demo_shows_that_eight_processes_use_one_server(output: str) -> None:
    rows = re.findall(r"^ +(\d+) +(http://\S+) +([0-9a-f]+) +\d+ ms", output, re.MULTILINE)
    assert len({pid for pid, _, _ in rows}) == 8
    assert len({(url, start_id) for _, url, start_id in rows}) == 1
    assert rows[0][2] in managed.live_servers()


def test_demo_ends_with_recall_and_how_to_stop(output: str) -> None:
    *_, table, ending = output.strip().split("\n\n")
    rows = re.findall(r"^ +(\d+)((?: +[\d.]+%){4})$", table, re.MULTILINE)
    assert [row[0] for row in rows] == ["384", "192", "96"]
    assert "was not trained to be cut" in table
    at_1, at_5, *_ = (float(share) for share in re.findall(r"[\d.]+", rows[0][1]))
    assert 30 < at_1 <= at_5 <= 100
    assert "\n" not in ending
    assert "emberd stop" in ending
    assert "emberd status" in ending

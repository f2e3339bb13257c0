"""``embed`` of data sets, with real servers: killed and repeated, and the rows that it left out."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

import stub_server
import waiting
from command import Command, stub


def _lines(path: Path, texts: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps({'id': i, 'text': t})}\n" for i, t in enumerate(texts)))
    return path


def _vectors(path: Path) -> Any:
    return np.array(parquet.read_table(path)["embedding"].to_pylist(), np.float32)


def test_rows_keep_their_fields_and_get_their_vectors(running: Command, tmp_path: Path) -> None:
    texts = [f"text {n}" for n in range(700)]
    source = _lines(tmp_path / "in.jsonl", texts)
    done = running("embed", *stub(), str(source), "-o", str(tmp_path / "out.parquet"))
    assert done.code == 0, done.err
    assert re.search(r"out.parquet: 700 rows; \d+\.\d s \(\d+ rows/s\)", done.err)
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table["id"].to_pylist() == list(range(700))
    expected = np.array([stub_server.vector(text) for text in texts], np.float32)
    assert np.allclose(_vectors(tmp_path / "out.parquet"), expected, atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.parquet"]


def test_bad_rows_are_set_aside_and_the_exit_code_tells(emberd: Command, tmp_path: Path) -> None:
    """The stub has no tokenizer route for a blank text, and dies of another."""
    texts = ["one", None, " ", "half \ud800", "DIE", "x" * 50, "two"]
    source = _lines(tmp_path / "in.jsonl", texts)
    target = tmp_path / "out.parquet"
    done = emberd("embed", *stub(), str(source), "-o", str(target))
    assert done.code == 6, done.err
    assert f"4 rows could not be embedded and are not in it: see {target}.rejects.jsonl" in done.err
    assert parquet.read_table(target)["text"].to_pylist() == ["one", "x" * 50, "two"]
    rejects = [
        json.loads(line) for line in Path(f"{target}.rejects.jsonl").read_text().splitlines()
    ]
    assert [row["line"] for row in rejects] == [2, 3, 4, 5]
    null, blank, half, poison = (row["reason"] for row in rejects)
    assert null == "The text is null."
    assert blank.startswith("The text is blank")
    assert "lone surrogate" in half
    assert "crashed" in poison


def test_without_pyarrow_the_command_says_what_to_install(tmp_path: Path) -> None:
    """And lines of text are embedded without it: importing the command does not import it."""
    source = _lines(tmp_path / "in.jsonl", ["one"])
    program = """
import sys
sys.modules["pyarrow"] = None
from emberd import cli
source, *targets = sys.argv[1:]
for target in targets:
    sys.argv = ["emberd", "embed", source, "-o", target]
    print(cli.main())
"""
    command = [sys.executable, "-c", program, str(source), "out.npy", "out.jsonl", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "2\n2\n2\n", done.stderr
    assert done.stderr.count("pip install 'emberd[parquet]'") == 3


def test_a_bad_row_can_be_an_error(running: Command, tmp_path: Path) -> None:
    source = _lines(tmp_path / "in.jsonl", ["one", None])
    command = ("embed", *stub(), str(source), "-o", str(tmp_path / "out.jsonl"))
    done = running(*command, "--bad-rows", "fail")
    assert done.code == 1
    assert f"(file {source}, line 2): The text is null." in done.err
    assert running(*command).code == 6


def test_a_killed_run_goes_on_and_ends_as_one_that_was_not(emberd: Command, tmp_path: Path) -> None:
    # Its request takes so many seconds, so that each part is written a while after the one before.
    texts = [f"passage {n:04} SLOW{0.4 * (n // 256 + 1):.1f}" for n in range(1000)]
    source = _lines(tmp_path / "in.jsonl", texts)
    target = tmp_path / "out.parquet"
    parts = tmp_path / "out.parquet.parts"
    command = ("embed", *stub(drain=0.1), str(source), "-o", str(target), "--save-every", "0")
    assert emberd("up", *stub(drain=0.1)).code == 0
    while not target.exists():
        with emberd.begin(*command) as process:
            # Killed when it has done more than the one before it, at no particular time.
            _wait_for_more(parts, process)
            process.send_signal(signal.SIGKILL)
            process.communicate()
    assert emberd(*command).code == 0
    assert parquet.read_table(target)["text"].to_pylist() == texts
    expected = np.array([stub_server.vector(text) for text in texts], np.float32)
    assert np.allclose(_vectors(target), expected, atol=1e-6)


def _wait_for_more(folder: Path, process: subprocess.Popen[bytes]) -> None:
    before = _parts(folder)
    waiting.until(lambda: process.poll() is not None or _parts(folder) > before, 60)


def _parts(folder: Path) -> int:
    return len([*folder.glob("part-*.parquet")]) if folder.exists() else 0


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_what_an_ended_run_has_done_is_not_done_again(
    emberd: Command, tmp_path: Path, signum: signal.Signals
) -> None:
    source = _lines(tmp_path / "in.jsonl", ["fast"] * 600 + ["SLOW6"])
    target = tmp_path / "out.npy"
    command = ("embed", *stub(drain=0.1), str(source), "-o", str(target), "--save-every", "0")
    parts = tmp_path / "out.npy.parts"
    with emberd.begin(*command, "--batch-size", "64") as process:
        waiting.until(lambda: [*parts.glob("part-*.parquet")], 30)
        process.send_signal(signum)
        _, err = process.communicate(timeout=20)
    assert process.returncode == (130 if signum == signal.SIGINT else -9)
    assert (b"run the same command again to continue" in err) == (signum == signal.SIGINT)
    done = emberd(*command, "--dimensions", "4")
    assert done.code == 2
    assert "was started with different parameters: identity " in done.err
    assert not target.exists()
    done = emberd(*command)
    assert done.code == 0, done.err
    before = re.search(r"601 rows, (\d+) of them done before", done.err)
    assert before is not None, done.err
    assert 0 < int(before[1]) <= 600


def test_queries_get_the_query_template(running: Command, tmp_path: Path) -> None:
    source = _lines(tmp_path / "in.jsonl", ["one"])
    target = tmp_path / "out.npy"
    done = running("embed", *stub(), str(source), "-o", str(target), "--as", "query")
    assert done.code == 0, done.err
    assert np.allclose(np.load(target), [stub_server.vector("one")], atol=1e-6)
    assert np.load(tmp_path / "out.rows.npy").tolist() == [0]


def test_a_terminal_sees_rate_and_time_left(running: Command, tmp_path: Path) -> None:
    source = _lines(tmp_path / "in.jsonl", [f"text {n}" for n in range(600)])
    done = running.on_terminal("embed", *stub(), str(source), "-o", str(tmp_path / "out"))
    assert done.code == 0
    assert re.search(r"embedding.*100%.* 600 rows, [\d,.]+/s .*0 s left", done.out)
    assert re.search(r"assembling.*100%", done.out)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("in.jsonl",), "Pass --output FILE.parquet, FILE.jsonl, FILE.npy or FOLDER."),
        (("in.jsonl", "-o", "out.csv"), "--output ends with .csv, which is not a format"),
        (("in.jsonl", "-o", "out", "-t", "x"), "--text cannot be combined with"),
        (("in.jsonl", "-o", "in.jsonl"), "in.jsonl is among the input"),
        (("out.rejects.jsonl", "-o", "out"), "out.rejects.jsonl is among the input"),
        (("", "-o", "out"), "The name of an input is empty"),
        (("in.txt", "--save-every", "5"), "--save-every are for Parquet"),
        (("in.txt", "-o", "out", "--ray"), "--ray requires Parquet"),
        (
            ("in.jsonl", "-o", "out", "--ray", "--save-every", "5"),
            "--save-every cannot be combined with --ray",
        ),
        (("data", "-o", "data/out.parquet"), "out.parquet is among the input"),
        (("in.jsonl", "in.txt", "-o", "out"), "in.txt contains one text per line"),
        (("in.jsonl", "-o", "/dev/full"), "is neither a file nor a folder"),
        (("in.jsonl", "-o", "out.npy", "--column", "body"), "has no field 'body'"),
        (("in.txt", "--column", "body"), "are for Parquet, JSON lines and folders"),
        (
            ("in.jsonl", "-o", "made", "--format", "npy"),
            "is a folder, which can only contain Parquet",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_before_a_server_is_asked_for(
    emberd: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    _lines(tmp_path / "in.jsonl", ["one"])
    _lines(tmp_path / "out.rejects.jsonl", ["mended"])
    (tmp_path / "in.txt").write_text("one")
    (tmp_path / "made").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.md").touch()
    done = emberd("embed", *stub(), *arguments)
    assert done.code == 2, done.err
    assert says in done.err
    assert not emberd.home.exists()

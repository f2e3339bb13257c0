"""``embed``: formats, rows, and files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

import stub_server
import waiting
from command import Command, stub
from emberd.bulk.formats import IDENTITY_KEY
from emberd.cli.text_stream import _next_size

LINES = ["one", "two", "drei", "四"]


def _expected(texts: list[str]) -> Any:
    return np.array([stub_server.vector(text) for text in texts], np.float32)


def _close(found: Any, texts: list[str]) -> bool:
    return bool(np.allclose(np.asarray(found), _expected(texts), atol=1e-6))


def test_lines_of_stdin_become_json_lines(running: Command) -> None:
    done = running("embed", *stub(), stdin="\n".join(LINES))
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [row["text"] for row in rows] == LINES
    assert _close([row["embedding"] for row in rows], LINES)
    assert "4 texts in " in done.err


def test_files_and_texts_are_taken_in_their_order(running: Command, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffdrei\r\n四\r\n".encode())
    done = running("embed", str(tmp_path / "a.txt"), "-", "-t", "one", "--text", "two", *stub())
    texts = [json.loads(line)["text"] for line in done.out.splitlines()]
    assert texts == LINES


def test_dimensions_of_the_environment_are_those_of_the_array(
    running: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBERD_DIMENSIONS", "4")
    target = tmp_path / "x.npy"
    assert running("embed", *stub(), "-t", "one", "-t", "two", "-o", str(target)).code == 0
    assert np.load(target).shape == (2, 4)


def test_npy_is_one_float32_array(running: Command, tmp_path: Path) -> None:
    running("embed", *stub(), "-o", str(tmp_path / "x.npy"), stdin="\n".join(LINES))
    found = np.load(tmp_path / "x.npy")
    assert (found.dtype, found.shape) == (np.dtype("<f4"), (4, 8))
    assert _close(found, LINES)
    assert [path.name for path in tmp_path.glob("*x.npy*")] == ["x.npy"]


def test_binary_formats_go_into_pipes(running: Command) -> None:
    for chosen in ("npy", "parquet"):
        done = subprocess.run(
            running.line("embed", *stub(), "--format", chosen, "-t", "one"),
            env=running.environment_of("embed", *stub()),
            capture_output=True,
        )
        file = io.BytesIO(done.stdout)
        if chosen == "npy":
            assert _close(np.load(file), ["one"])
        else:
            assert parquet.read_table(file).column("text").to_pylist() == ["one"]


def test_parquet_is_as_that_of_data(running: Command, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    running("embed", *stub(), "-o", str(path), stdin="\n".join(LINES))
    table = parquet.read_table(path)
    (tmp_path / "in.jsonl").write_text("".join(f'{{"text": "{line}"}}\n' for line in LINES))
    running("embed", *stub(), str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "y.parquet"))
    other = parquet.read_table(tmp_path / "y.parquet")
    assert table.schema.equals(other.schema, check_metadata=True)
    assert IDENTITY_KEY in table.schema.metadata
    assert table.column("text").to_pylist() == LINES
    assert _close(table.column("embedding").to_pylist(), LINES)


def test_many_windows_make_one_file_in_order(running: Command, tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(300)]
    for name in ("x.npy", "x.parquet"):
        running("embed", *stub(), "-o", str(tmp_path / name), stdin="\n".join(texts))
    assert _close(np.load(tmp_path / "x.npy"), texts)
    table = parquet.read_table(tmp_path / "x.parquet")
    assert _close(table["embedding"].to_pylist(), texts)
    assert parquet.ParquetFile(tmp_path / "x.parquet").num_row_groups == 2


def test_dimensions_cut_and_a_warning_is_words(running: Command) -> None:
    done = running("embed", *stub(), "--dimensions", "4", "-t", "one")
    (row,) = (json.loads(line) for line in done.out.splitlines())
    head = np.array(stub_server.vector("one")[:4])
    assert np.allclose(row["embedding"], head / np.linalg.norm(head), atol=1e-6)
    assert "warning: --dimensions 4" in done.err
    assert "UserWarning" not in done.err


def test_no_input_gives_an_empty_file(running: Command, tmp_path: Path) -> None:
    running("embed", *stub(), "-o", str(tmp_path / "x.npy"))
    assert np.load(tmp_path / "x.npy").shape == (0, 8)


def test_a_text_that_cannot_be_embedded_is_named_by_file_and_line(
    running: Command, tmp_path: Path
) -> None:
    """The stub's model has no known end-of-text token to stand for a blank line."""
    source = tmp_path / "in.txt"
    source.write_text("\n".join([*("x" * n for n in range(1, 400)), "", "y"]))
    done = running("embed", *stub(), str(source), "-o", str(tmp_path / "out.jsonl"))
    assert done.code == 1
    assert f"is line 400 of {source}." in done.err
    assert [path.name for path in tmp_path.glob("*out*")] == []


def test_text_that_is_not_utf8_is_an_error_with_its_place(running: Command, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"fine\ncaf\xe9\n")
    done = running("embed", *stub(), str(tmp_path / "in.txt"))
    assert done.code == 1
    assert "in.txt is not UTF-8 in line 2 (byte 0xe9). Convert it: iconv " in done.err
    assert done.err.splitlines()[-1].endswith(f"-t UTF-8 {tmp_path / 'in.txt'}")


def test_a_dash_as_output_is_stdout(
    running: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = running("embed", *stub(), "-o", "-", "-t", "one")
    assert json.loads(done.out)["text"] == "one"
    assert done.err.startswith("1 text in ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("chosen", ["jsonl", "npy"])
def test_a_full_disk_names_the_output(running: Command, chosen: str) -> None:
    done = running("embed", *stub(), "-t", "one", "-o", "/dev/full", "--format", chosen)
    assert done.code == 1
    assert re.search("error: /dev/full.*No space left on device", done.err)


def test_stdout_on_a_full_disk_is_an_error_with_words(running: Command) -> None:
    with Path("/dev/full").open("wb") as full:
        for verb in ("embed", *stub(), "-t", "one"), ("env", *stub()):
            with running.begin(*verb, stdout=full) as process:
                _, err = process.communicate()
            assert process.returncode == 1
            assert b"No space left on device" in err
            assert b"Traceback" not in err
            assert b"Exception" not in err


def test_its_help_tells_what_truncate_needs(running: Command) -> None:
    told = " ".join(running("embed", "--help").out.split())
    assert "tokenizer route: SGLang has one, emberd/demo has not." in told


def test_a_terminal_sees_how_fast_it_goes(running: Command, tmp_path: Path) -> None:
    done = running.on_terminal("embed", *stub(), "-t", "one", "-o", str(tmp_path / "x.jsonl"))
    assert done.code == 0
    assert re.search(r"embedding.*[\d.]+ texts/s", done.out)


def test_binary_on_a_terminal_is_refused(running: Command) -> None:
    done = running.on_terminal("embed", *stub(), "--format", "npy", "-t", "one")
    assert done.code == 2
    assert "--format npy is not for a terminal. Pass --output FILE." in done.out


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
@pytest.mark.parametrize("name", ["out.jsonl", "out.npy"])
def test_an_end_in_the_middle_leaves_the_output_as_it_was(
    emberd: Command, tmp_path: Path, signum: signal.Signals, code: int, name: str
) -> None:
    source, target = tmp_path / "in.txt", tmp_path / name
    source.write_text("\n".join([*("fast" for _ in range(256)), "SLOW30"]))
    target.write_text("what was there before")
    with emberd.begin("embed", *stub(drain=0.1), str(source), "-o", str(target)) as process:
        # The first window is written, the second never comes.
        waiting.until(lambda: _unnamed_bytes(process.pid, tmp_path) > 5000)
        process.send_signal(signum)
        process.communicate(timeout=20)
    assert process.returncode == code
    assert target.read_text() == "what was there before"
    assert list(tmp_path.glob("*out*")) == [target]


@pytest.mark.parametrize("chosen", ["jsonl", "npy"])
def test_a_pipe_or_device_that_is_named_as_output_is_written_to_and_stays(
    running: Command, tmp_path: Path, chosen: str
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    arguments = ("embed", *stub(), "-t", "one", "-o", str(pipe), "--format", chosen)
    with running.begin(*arguments) as process:
        content = pipe.read_bytes()
        process.communicate()
    if chosen == "jsonl":
        assert _close([json.loads(content)["embedding"]], ["one"])
    else:
        assert _close(np.load(io.BytesIO(content)), ["one"])
    assert (process.returncode, list(tmp_path.iterdir())) == (0, [pipe])


def test_a_link_stays_a_link(running: Command, tmp_path: Path) -> None:
    (tmp_path / "real.jsonl").write_text("old")
    (tmp_path / "link.jsonl").symlink_to("real.jsonl")
    running("embed", *stub(), "-o", str(tmp_path / "link.jsonl"), "-t", "one")
    assert (tmp_path / "link.jsonl").is_symlink()
    assert json.loads((tmp_path / "real.jsonl").read_text())["text"] == "one"


@pytest.mark.parametrize(
    ("texts", "seconds", "size"), [(256, 4.0, 256), (256, 0.5, 1024), (4096, 0.1, 4096)]
)
def test_windows_grow_with_the_speed(texts: int, seconds: float, size: int) -> None:
    assert _next_size(texts, seconds) == size


def _unnamed_bytes(pid: int, folder: Path) -> int:
    """Return the size of the file in ``folder`` that the process has open and that has no name."""
    sizes = [0]
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            place = descriptor.readlink()
            if place.parent == folder and place.name.startswith("#"):
                sizes.append(descriptor.stat().st_size)
    return max(sizes)

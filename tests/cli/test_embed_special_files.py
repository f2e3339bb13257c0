"""``embed`` of pipes, devices, sockets and links: read where that makes sense, never waited for."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

import damage
from command import Command, stub
from small_disk import Disk, disk

__all__ = ["disk"]

TIMEOUT_S = 50.0


def texts(out: bytes) -> list[str]:
    return [json.loads(line)["text"] for line in out.splitlines()]


def shell(running: Command, words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run a line of bash in which EMBED stands for the command."""
    line = " ".join(running.line("embed", *stub()))
    return subprocess.run(
        ["bash", "-c", words.replace("EMBED", line)],
        env=running.environment_of("embed", *stub()),
        input=stdin,
        capture_output=True,
        timeout=TIMEOUT_S,
    )


@pytest.mark.parametrize("source", ["<(printf 'one\\ntwo\\n')", "/dev/stdin", "/proc/self/fd/0"])
def test_pipes_of_the_shell_are_read(running: Command, source: str) -> None:
    done = shell(running, f"EMBED {source}", b"one\ntwo\n")
    assert texts(done.stdout) == ["one", "two"], done.stderr


def test_named_pipe_is_read_to_its_end(running: Command, tmp_path: Path) -> None:
    """It is opened once: a writer ends when it is closed, and would lose what it has to say."""
    os.mkfifo(tmp_path / "pipe")
    writer = "{ echo one; sleep 0.5; echo two; }"
    done = shell(running, f"{writer} > {tmp_path}/pipe & EMBED {tmp_path}/pipe")
    assert texts(done.stdout) == ["one", "two"], done.stderr
    assert b"named pipe" in done.stderr


def test_dev_null_has_no_lines(running: Command) -> None:
    assert running("embed", *stub(), "/dev/null").code == 0


@pytest.mark.parametrize("source", ["/dev/zero", "/dev/urandom", "socket", "loop", "dangling"])
def test_what_has_no_end_or_no_text_is_refused(
    running: Command, tmp_path: Path, source: str
) -> None:
    place = tmp_path / source.lstrip("/").replace("/", "-")
    if source == "socket":
        damage.make_socket(place)
    elif source.startswith("/"):
        place.symlink_to(source)
    else:
        place.symlink_to(place.name if source == "loop" else "nowhere")
    done = running("embed", *stub(), str(place))
    assert done.code == 2
    assert str(place) in done.err


@pytest.mark.parametrize("kind", ["socket", "device"])
def test_output_that_cannot_be_written_is_an_error_that_names_it(
    running: Command, tmp_path: Path, kind: str
) -> None:
    place = tmp_path / "out.jsonl"
    if kind == "socket":
        damage.make_socket(place)
    else:
        place.symlink_to("/dev/full")
    done = running("embed", *stub(), "-t", "one", "-o", str(place))
    assert done.code not in (0, None)
    assert "out.jsonl" in done.err
    assert "bug" not in done.err


@pytest.mark.parametrize("target", ["out.jsonl", "-"])
@pytest.mark.parametrize("source", ["/proc/self/mem", "- 0>/dev/null"])
def test_error_of_reading_names_the_input(
    running: Command, tmp_path: Path, source: str, target: str
) -> None:
    """The first bytes of that file cannot be read, as those of a disk with a fault."""
    done = shell(running, f"cd {tmp_path} && EMBED {source} -o {target}")
    named, err = source.split(maxsplit=1)[0].replace("-", "stdin"), done.stderr.decode()
    assert done.returncode == 1, err
    assert f"{named} cannot be read" in err
    assert "out.jsonl" not in err
    assert "stdout" not in err
    assert list(tmp_path.iterdir()) == []


def test_input_that_disappears_is_named(running: Command, tmp_path: Path) -> None:
    """A pipe is the first input, so the second one is checked before it is opened."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "later.txt").write_text("two\n")
    line = "{ rm later.txt; echo one; } > pipe & EMBED pipe later.txt -o out.jsonl"
    err = shell(running, f"cd {tmp_path}; {line}").stderr.decode()
    assert "error: later.txt cannot be read" in err
    assert list(tmp_path.iterdir()) == [tmp_path / "pipe"]


@pytest.mark.parametrize("source", ["", "-"])
def test_closed_stdin_is_an_error(running: Command, source: str) -> None:
    done = shell(running, f"EMBED {source} <&-")
    assert done.returncode == 2
    assert b"stdin is closed" in done.stderr


def test_full_disk_of_the_temporary_file_is_not_reported_as_one_of_the_output(
    running: Command, disk: Disk
) -> None:
    disk.fill()
    os.truncate(disk.folder / "filler", (disk.folder / "filler").stat().st_size - 4096)
    line = f"yes | head -n 2000 | TMPDIR={disk.folder} EMBED --format npy | cat"
    err = shell(running, f"set -o pipefail; {line}").stderr.decode()
    assert str(disk.folder) in err
    assert "TMPDIR" in err
    assert "stdout" not in err


def test_pipes_in_a_folder_are_named_and_not_read(running: Command, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.md").write_text("one")
    os.mkfifo(tmp_path / "in" / "b.md")
    done = running("embed", *stub(), str(tmp_path / "in"), "-o", str(tmp_path / "out.jsonl"))
    assert done.code == 0, done.err
    assert "b.md" in done.err


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet"])
def test_pipe_in_place_of_a_data_set_is_refused(
    running: Command, tmp_path: Path, name: str
) -> None:
    os.mkfifo(tmp_path / name)
    done = running("embed", *stub(), str(tmp_path / name), "-o", str(tmp_path / "out.jsonl"))
    assert done.code == 2
    assert name in done.err

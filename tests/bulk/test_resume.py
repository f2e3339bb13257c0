"""A run continues an earlier one with the same parameters; two runs never work at once."""

from __future__ import annotations

import gzip
import os
import random
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

import bulk_standin
from bulk_standin import is_right, request, run, run_request
from emberd.bulk import checkpoint, pipeline, units
from emberd.bulk.parts import PartWriter
from emberd.bulk.request import OutputFormat
from emberd.bulk.units import Chunk, Cursor, RowError
from emberd.errors import EmberdError, ServerUnavailableError, SettingError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f'{{"text": "text {n}", "body": "{n}"}}\n' for n in range(1000)))
    return path


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.parquet"


def _begin(source: Path, output: Path, **options: Any) -> list[str]:
    """Let the server fail at text 600, and return the texts that it saw before."""
    seen: list[str] = []
    with pytest.raises(ServerUnavailableError) as raised:
        _run(source, output, lambda text: _fail_at_600(text, seen), **options)
    assert raised.value.__notes__ == [pipeline.RESUME_HINT]
    assert not output.exists()
    return seen


def _fail_at_600(text: str, seen: list[str]) -> None:
    if text.endswith("600"):
        raise ServerUnavailableError("Nobody answers.")
    seen.append(text)


def _run(source: Path, output: Path, on_text: Callable[[str], object], **options: Any) -> None:
    def embed(texts: Iterable[str]) -> Iterator[Any]:
        for text in texts:
            on_text(text)
            yield bulk_standin.vector(text)

    run_request(request(source, output, **options), embed)


@pytest.mark.parametrize("save_every_s", [0.0, 3600.0])
def test_after_a_server_failure_only_the_rest_is_embedded(
    source: Path, output: Path, save_every_s: float
) -> None:
    _begin(source, output, save_every_s=save_every_s)
    seen: list[str] = []
    _run(source, output, seen.append, save_every_s=save_every_s)
    assert seen == [f"text {n}" for n in range(512, 1000)]
    table = parquet.read_table(output)
    assert table["text"].to_pylist() == [f"text {n}" for n in range(1000)]
    assert is_right(output)
    assert not output.with_name("out.parquet.parts").exists()


def _packed(folder: Path) -> Path:
    with gzip.open(folder / "in.jsonl.gz", "wt") as file:
        file.writelines(f'{{"text": "text {n}"}}\n\n' for n in range(1000))
    return folder / "in.jsonl.gz"


def _many_files(folder: Path) -> Path:
    (folder / "in").mkdir()
    for start in range(0, 1000, 80):
        texts = [f"text {n}" for n in range(start, min(start + 80, 1000))]
        path = folder / f"in/{start:04d}.parquet"
        parquet.write_table(pa.table({"text": texts}), path, row_group_size=30)
    return folder / "in"


def _many_texts(folder: Path) -> Path:
    (folder / "in").mkdir()
    for n in range(1000):
        (folder / f"in/{n:04d}.md").write_text(f"text {n}")
    return folder / "in"


@pytest.mark.parametrize("make", [_packed, _many_files, _many_texts])
def test_any_input_is_continued_in_its_middle(
    tmp_path: Path, output: Path, make: Callable[[Path], Path]
) -> None:
    source = make(tmp_path)
    before = len(_begin(source, output))
    seen: list[str] = []
    _run(source, output, seen.append)
    assert 0 < len(seen) < 600 <= before
    assert parquet.read_table(output)["text"].to_pylist() == [f"text {n}" for n in range(1000)]
    assert is_right(output)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"identity": "emberd:other"}, "identity 'emberd:stand-in' then, 'emberd:other' now"),
        ({"role": "query"}, "role 'document' then, 'query' now"),
        ({"column": "body"}, "column 'text' then, 'body' now"),
        ({"embedding_column": "vector"}, "embedding column 'embedding' then, 'vector' now"),
        ({"output_format": OutputFormat.NPY}, "output 'parquet' then, 'npy' now"),
        ({"truncate": True}, "truncate False then, True now"),
        ({"deterministic": True}, "deterministic False then, True now"),
    ],
)
def test_other_parameters_are_refused(
    source: Path, output: Path, options: dict[str, Any], says: str
) -> None:
    _begin(source, output)
    with pytest.raises(SettingError) as raised:
        run(source, output, **options)
    assert says in str(raised.value)
    assert "--restart" in str(raised.value)
    run(source, output, restart=True, **options)
    assert output.exists()


@pytest.mark.parametrize("name", ["CUT_VERSION", "UNIT_ROWS", "UNIT_BYTES", "UNIT_FILES"])
def test_parts_of_units_that_were_cut_otherwise_are_refused(
    source: Path, output: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    _begin(source, output)
    monkeypatch.setattr(units, name, getattr(units, name) + 1)
    with pytest.raises(SettingError, match=r"units \[.*\] then, \[.*\] now.* --restart"):
        run(source, output)
    assert run(source, output, restart=True).embedded == 1000


def test_without_parts_other_parameters_are_accepted(source: Path, output: Path) -> None:
    with pytest.raises(ServerUnavailableError):
        _run(source, output, lambda _: _fail_at_600("600", []))
    assert run(source, output, column="body").embedded == 1000


def test_vectors_of_another_length_are_refused(source: Path, output: Path) -> None:
    _begin(source, output)
    with pytest.raises(SettingError, match="started with vectors of 4 dimensions, .* 8 now"):
        run_request(request(source, output), dimensions=8)


def test_an_input_changed_between_runs_is_refused(source: Path, output: Path) -> None:
    _begin(source, output)
    with source.open("a") as file:
        file.write('{"text": "more"}\n')
    with pytest.raises(SettingError, match=r"the size of .*in.jsonl changed from \d+ to \d+ bytes"):
        run(source, output)
    assert run(source, output, restart=True).embedded == 1001


def test_an_input_changed_during_a_run_is_an_error(source: Path, output: Path) -> None:
    def touch(text: str) -> None:
        if text == "text 700":
            os.utime(source, ns=(1, 1))

    with pytest.raises(SettingError, match="changed while it was read: .* was modified"):
        _run(source, output, touch)
    assert not output.exists()


def test_added_and_removed_files_are_named(source: Path, output: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.jsonl"
    more.write_text('{"text": "more"}')
    _begin(source, output)
    with pytest.raises(
        SettingError, match=r"input files changed from 1 to 2 \(.*more.jsonl is new\)"
    ):
        run([source, more], output)


def test_a_second_run_is_refused_while_the_first_works(source: Path, output: Path) -> None:
    began, ended = threading.Event(), threading.Event()

    def wait(text: str) -> None:
        began.set()
        assert ended.wait(30)

    first = threading.Thread(target=_run, args=(source, output, wait))
    first.start()
    assert began.wait(30)
    command = [sys.executable, bulk_standin.__file__]
    line = f'["{source}", "{output}", 0]\n'
    path = os.pathsep.join(filter(None, sys.path))
    second = subprocess.run(
        command,
        input=line,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    ended.set()
    first.join()
    assert second.stdout == "1\n"
    told = f"{output} is being written by another run (process {os.getpid()} on "
    assert told in second.stderr
    assert is_right(output)


def test_a_full_disk_is_named_and_finished_work_is_kept(source: Path, output: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    texts = [random.Random(n).randbytes(100).hex() for n in range(1000)]
    source.write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    wanted = request(source, output)
    # Parts are small enough for it, and the whole output is not.
    resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, hard))
    try:
        with pytest.raises(EmberdError, match=r"out.parquet.*File too large"):
            run_request(wanted)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    seen: list[str] = []
    _run(source, output, seen.append)
    assert seen == []
    assert is_right(output)


def test_a_deleted_part_is_embedded_again(source: Path, output: Path) -> None:
    _begin(source, output)
    folder = output.with_name("out.parquet.parts")
    (first, _) = sorted(folder.glob("part-*.parquet"))
    first.unlink()
    seen: list[str] = []
    _run(source, output, seen.append)
    assert len(seen) == 1000
    assert is_right(output)


def test_a_damaged_part_is_named(source: Path, output: Path) -> None:
    _begin(source, output)
    (*_, last) = sorted(output.with_name("out.parquet.parts").glob("part-*.parquet"))
    last.write_bytes(last.read_bytes()[:100])
    with pytest.raises(EmberdError, match=r"part-.*parquet is damaged: .* Delete it"):
        run(source, output)


def test_an_existing_folder_with_other_files_is_not_used(source: Path, output: Path) -> None:
    folder = output.with_name("out.parquet.parts")
    folder.mkdir()
    (folder / "mine").write_text("mine")
    with pytest.raises(SettingError, match="Move it, or pass another --output"):
        run(source, output)
    assert (folder / "mine").read_text() == "mine"


def test_a_bad_row_can_be_an_error(source: Path, output: Path) -> None:
    source.write_text('{"text": "a"}\n{"text": 1}\n')
    with pytest.raises(EmberdError, match=r"\(file .*in.jsonl, line 2\): The text is of type int"):
        run(source, output, bad_rows="fail")
    assert run(source, output).rejected == 1


def test_rejects_of_an_earlier_output_are_deleted(source: Path, output: Path) -> None:
    source.write_text('{"text": "a"}\n{"text": 1}\n')
    run(source, output)
    assert bulk_standin.rejects(output)
    source.write_text('{"text": "a"}\n')
    run(source, output)
    assert not bulk_standin.rejects(output)


def _most_waiting(chunks: list[Chunk]) -> int:
    """Embed ``chunks``, and return how many were taken and not given back at most."""
    taken = given = most = 0

    def told() -> Iterator[Chunk]:
        nonlocal taken
        for chunk in chunks:
            taken += 1
            yield chunk

    for _ in pipeline.embed_chunks(told(), bulk_standin.embed, 3600.0):
        most = max(most, taken - given)
        given += 1
    assert given == len(chunks)
    return most


def _chunk(texts: list[str | RowError], kept: Any) -> Chunk:
    return Chunk(texts, kept, lambda index: {}, Cursor())


def test_many_rows_without_a_text_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emberd.bulk.pipeline._MAX_WAITING_ERRORS", 300)
    kept, nulls = pa.table({}), [RowError("The text is null.")] * 100
    chunks = [_chunk(["a", *nulls], kept), *[_chunk([*nulls], kept)] * 20, _chunk(["b"], kept)]
    assert _most_waiting(chunks) <= 4


def test_large_rows_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emberd.bulk.pipeline._MAX_WAITING_BYTES", 30_000)
    kept = pa.table({"picture": [b"x" * 10_000]})
    assert _most_waiting([_chunk([f"{n}"], kept) for n in range(30)]) <= 4


@pytest.mark.parametrize("step", range(12))
def test_ctrl_c_between_any_two_lines_doubles_no_row(source: Path, output: Path, step: int) -> None:
    """In the taking over of the third chunk."""
    calls = lines = 0

    def watch(frame: Any, event: str, _: object) -> Any:
        nonlocal calls, lines
        if frame.f_code is not PartWriter.add.__code__:
            return None
        calls += event == "call"
        lines += event == "line" and calls == 3
        if lines > step:
            sys.settrace(None)
            raise KeyboardInterrupt
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        run(source, output, save_every_s=3600.0)
    except KeyboardInterrupt:
        assert not output.exists()
    finally:
        sys.settrace(before)
    assert calls >= 3
    run(source, output, save_every_s=3600.0)
    table = parquet.read_table(output)
    assert table["text"].to_pylist() == [f"text {n}" for n in range(1000)]


def test_an_output_moved_before_cleanup_is_made_again(source: Path, output: Path) -> None:
    _begin(source, output)
    # As a run leaves it that is killed when it has put the output in its place.
    folder = output.with_name("out.parquet.parts")
    left = checkpoint.load_manifest(folder)
    assert left is not None
    left.rows = 1000
    left.is_assembled = True
    left.save(folder)
    assert run(source, output).embedded == 1000
    assert is_right(output)


def test_progress_starts_before_the_first_row(source: Path, output: Path) -> None:
    """So that the time of the first rows counts for the speed."""
    told: list[pipeline.BulkProgress] = []
    run_request(request(source, output), watch=told.append)
    assert (told[0].phase, told[0].done, told[0].rows) == ("embedding", 0, 0)

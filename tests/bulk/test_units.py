"""Files are cut into units, and each row is in one unit, wherever the files are cut."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from bulk_standin import is_right, rejects, run
from emberd.bulk import readers, units
from emberd.bulk.request import BulkRequest, OutputFormat, find_inputs
from emberd.bulk.units import Cursor, InputReader
from emberd.errors import EmberdError

ROWS: list[dict[str, Any]] = [
    {"id": row, "text": f"text {row}" + "é" * (row % 7)} for row in range(50)
]


def open_files(*paths: Path) -> InputReader:
    found = find_inputs([str(path) for path in paths])
    return readers.open_reader(BulkRequest(found, Path("out"), OutputFormat.FOLDER, "test"))


def read(reader: InputReader) -> tuple[list[Any], list[dict[str, Any]]]:
    """Return the texts of all units and where they are, from a reader that was pickled."""
    reader = pickle.loads(pickle.dumps(reader))
    texts: list[Any] = []
    places: list[dict[str, Any]] = []
    for unit in reader.units:
        for chunk in reader.chunks(unit, Cursor()):
            texts += chunk.texts
            places += [chunk.location(index) for index in range(len(chunk.texts))]
    return texts, places


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"\n\n".join(json.dumps(row, ensure_ascii=False).encode() for row in rows)


@pytest.mark.parametrize("size", range(1, 90, 8))
def test_json_lines_are_read_once_wherever_they_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(units, "UNIT_BYTES", size)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + jsonl(ROWS) + b"\n\n")
    reader = open_files(path)
    assert len(reader.units) > 10
    assert read(reader)[0] == [row["text"] for row in ROWS]


@pytest.mark.parametrize("size", [100, 1 << 20])
def test_line_and_row_numbers_do_not_depend_on_the_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(units, "UNIT_BYTES", size)
    bad = [row | ({"text": None} if row["id"] % 10 == 9 else {}) for row in ROWS]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_bytes(jsonl(bad) + b"\n\n\n")
    (tmp_path / "in/b.jsonl").write_bytes(b"\n" + jsonl(bad))
    run(tmp_path / "in", tmp_path / "out.parquet")
    assert is_right(tmp_path / "out.parquet")
    numbers = [9, 19, 29, 39, 49]
    found = [
        (row["file"][-7:], row["row"], row["line"]) for row in rejects(tmp_path / "out.parquet")
    ]
    assert found == [("a.jsonl", n, 2 * n + 1) for n in numbers] + [
        ("b.jsonl", n + 50, 2 * n + 2) for n in numbers
    ]
    with pytest.raises(EmberdError, match=r"a\.jsonl, line 19\): The text is null"):
        run(tmp_path / "in", tmp_path / "other.parquet", bad_rows="fail")


def test_packed_lines_are_one_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "UNIT_BYTES", 10)
    path = tmp_path / "ROWS.JSONL.GZ"
    path.write_bytes(gzip.compress(jsonl(ROWS)))
    reader = open_files(path)
    assert len(reader.units) == 1
    assert read(reader)[0] == [row["text"] for row in ROWS]


def test_a_parquet_file_cut_off_after_it_was_opened_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    reader = open_files(path)
    os.truncate(path, path.stat().st_size - 12)
    with pytest.raises(EmberdError, match=r"rows\.parquet cannot be read as Parquet"):
        read(reader)


def test_row_groups_are_read_once_and_rows_are_numbered_in_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "UNIT_ROWS", 12)
    for name in ("a", "b"):
        table = pyarrow.Table.from_pylist(ROWS)
        parquet.write_table(table, tmp_path / f"{name}.parquet", row_group_size=5)
    reader = open_files(tmp_path)
    texts, places = read(reader)
    assert texts == [row["text"] for row in ROWS] * 2
    assert [place["file_row"] for place in places] == [*range(50)] * 2
    assert len(reader.units) == 8


def test_small_files_share_a_unit_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "UNIT_ROWS", 12)
    for number, rows in enumerate([5, 0, 6, 30, 4]):
        table = pyarrow.table({"text": pyarrow.array([str(number)] * rows, pyarrow.string())})
        parquet.write_table(table, tmp_path / f"{number}.parquet", row_group_size=10)
    reader = open_files(tmp_path)
    counts = [[each.size for each in unit.slices] for unit in reader.units]
    assert counts == [[5, 0, 6], [20], [10], [4]]
    assert read(reader)[0] == ["0"] * 5 + ["2"] * 6 + ["3"] * 30 + ["4"] * 4


def test_each_text_file_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "UNIT_FILES", 2)
    (tmp_path / "in").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / f"in/{name}.md").write_text(f"# {name}")
    (tmp_path / "in/d.txt").symlink_to("nowhere")
    run(tmp_path / "in", tmp_path / "out.parquet")
    assert parquet.read_table(tmp_path / "out.parquet")["text"].to_pylist() == ["# a", "# b", "# c"]
    (reject,) = rejects(tmp_path / "out.parquet")
    assert (reject["row"], reject["reason"][:23]) == (3, "The file cannot be read")


def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}')
    os.mkfifo(tmp_path / "b.jsonl")
    assert read(open_files(tmp_path))[0] == ["a"]

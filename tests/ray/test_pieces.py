"""Files are cut into pieces, and of each piece every row is read once, whatever the cut."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from emberd.bulk import inputs
from emberd.errors import EmberdError, SettingError
from emberd.ray import reading, units
from emberd.ray.reading import Refused, Rows
from emberd.ray.units import Unit

ROWS = [{"id": row, "text": f"text {row}" + "é" * (row % 7)} for row in range(50)]


def read(found: list[Unit]) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[Refused]]:
    """Return the rows of all pieces, their places, and what is no row."""
    rows: list[dict[str, Any]] = []
    places: list[dict[str, Any]] = []
    refused: list[Refused] = []
    for unit in found:
        for each in reading.read(unit, "text", 7):
            if isinstance(each, Rows):
                rows += each.table.to_pylist()
                places += each.places
            else:
                refused.append(each)
    return rows, places, refused


def cut(*paths: Path) -> list[Unit]:
    return units.cut(inputs.find([str(path) for path in paths]))


@pytest.mark.parametrize("size", range(1, 90, 8))
def test_json_lines_are_read_once_wherever_they_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(units, "_BYTES", size)
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in ROWS]
    path.write_bytes(b"\xef\xbb\xbf" + b"\n\n".join(lines))
    rows, places, refused = read(cut(path))
    assert (rows, refused) == (ROWS, [])
    content = path.read_bytes()
    assert [content[place["byte"] :].lstrip(b"\xef\xbb\xbf")[:6] for place in places] == [
        b'{"id":'
    ] * len(ROWS)


def test_packed_lines_are_one_piece(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))
    found = cut(path)
    assert len(found) == 1
    assert read(found)[0] == ROWS


def test_row_groups_are_read_once_and_rows_are_numbered_in_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "_ROWS", 12)
    for name in ("a", "b"):
        parquet.write_table(
            pyarrow.Table.from_pylist(ROWS), tmp_path / f"{name}.parquet", row_group_size=5
        )
    found = cut(tmp_path)
    rows, places, _ = read(found)
    assert rows == ROWS * 2
    assert [place["row"] for place in places] == [*range(50)] * 2
    assert len({unit.name for unit in found}) == len(found) == 8


def test_each_text_file_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "_FILES", 2)
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.md").write_text(f"# {name}")
    (tmp_path / "d.txt").write_bytes(b"\xff")
    rows, _, refused = read(cut(tmp_path))
    assert [row["text"] for row in rows] == ["# a", "# b", "# c"]
    assert [one.place["file"] for one in refused] == [str(tmp_path / "d.txt")]


def test_a_line_that_is_no_object_is_refused_and_a_field_that_is_null_is_a_column_of_texts(
    tmp_path: Path,
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "note": null}\n{bad\n[1]\n{"note": null}\n')
    (unit,) = cut(path)
    rows, _, refused = read([unit])
    assert [row["text"] for row in rows] == ["a", None]
    assert [one.text for one in refused] == ["{bad", "[1]"]
    tables = [each.table for each in reading.read(unit, "text", 7) if isinstance(each, Rows)]
    assert tables[0].schema.field("note").type == pyarrow.string()


def test_values_that_no_column_can_hold_are_an_error_that_names_the_field(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "n": 1}\n{"text": "b", "n": "two"}\n')
    with pytest.raises(EmberdError, match="'n' has values of several types"):
        read(cut(path))


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_a_column_that_is_not_there_is_refused_with_those_that_are(
    tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"rows.{ending}"
    if ending == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        path.write_text("\n".join(map(json.dumps, ROWS)))
    with pytest.raises(SettingError, match="no column 'body'. There are: 'id', 'text'"):
        reading.check_columns(inputs.find([str(path)]), "body", "embedding")
    with pytest.raises(SettingError, match="has a column 'id' already"):
        reading.check_columns(inputs.find([str(path)]), "text", "id")

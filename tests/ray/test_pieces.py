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
from emberd.bulk.inputs import Inputs, Kind
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
        for each in reading.read(unit, "text", "embedding", 7):
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


def test_an_ending_in_capitals_is_one_too(tmp_path: Path) -> None:
    path = tmp_path / "ROWS.JSONL.GZ"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))
    assert read(units.cut(Inputs(Kind.JSONL, (path,))))[0] == ROWS


def test_a_file_that_is_cut_off_is_an_error_that_names_it(tmp_path: Path) -> None:
    packed, table = tmp_path / "rows.jsonl.gz", tmp_path / "rows.parquet"
    packed.write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-12])
    with pytest.raises(EmberdError, match=r"rows\.jsonl\.gz cannot be unpacked"):
        read(cut(packed))
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), table)
    found = cut(table)
    table.write_bytes(table.read_bytes()[:-12])
    with pytest.raises(EmberdError, match=r"rows\.parquet cannot be read as Parquet"):
        read(found)


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
    found = reading.read(unit, "text", "embedding", 7)
    tables = [each.table for each in found if isinstance(each, Rows)]
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
    with pytest.raises(SettingError, match=r"has no (column|field) 'body'.* are: id, text"):
        reading.check_columns(inputs.find([str(path)]), "body", "embedding")


def test_a_column_that_any_file_has_already_is_refused(tmp_path: Path) -> None:
    for name, extra in (("a", {}), ("b", {"embedding": ["precious"]})):
        parquet.write_table(pyarrow.table({"text": ["x"], **extra}), tmp_path / f"{name}.parquet")
    with pytest.raises(SettingError, match="a column 'embedding' already"):
        reading.check_columns(inputs.find([str(tmp_path)]), "text", "embedding")


def test_numbers_are_refused_as_texts(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"text": [1, 2]}), tmp_path / "rows.parquet")
    with pytest.raises(SettingError, match="holds int64, not texts"):
        reading.check_columns(inputs.find([str(tmp_path)]), "text", "embedding")


def test_what_is_only_late_in_the_input_is_no_reason_to_refuse_it(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "b.jsonl").write_text('{"id": 1}\n{"text": "b"}\n')
    reading.check_columns(inputs.find([str(tmp_path)]), "text", "embedding")


def test_columns_of_text_files_have_names_that_differ(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    for column, added in (("path", "embedding"), ("text", "path"), ("text", "text")):
        with pytest.raises(SettingError, match="must differ"):
            reading.check_columns(inputs.find([str(tmp_path)]), column, added)

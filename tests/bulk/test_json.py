"""JSON lines in: objects stay as they are, and what is no object is set aside."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from bulk_standin import is_right, rejects, run, vector
from emberd.errors import EmberdError, SettingError


def _write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    return path


def test_objects_become_columns(tmp_path: Path) -> None:
    rows = [
        {"text": "eins", "id": 1, "tags": ["a"], "more": {"x": 1}, "score": 1},
        {"id": 2, "text": "四 \U0001f600", "tags": [], "more": {"y": "z"}, "score": 0.5},
        {"text": "three", "late": True, "id": None},
    ]
    run(_write(tmp_path / "in.jsonl", rows), tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet").drop_columns("embedding")
    assert table.to_pylist() == [
        {"text": "eins", "id": 1, "tags": ["a"], "more": {"x": 1, "y": None}, "score": 1.0}
        | {"late": None},
        {"text": "四 \U0001f600", "id": 2, "tags": [], "more": {"x": None, "y": "z"}, "score": 0.5}
        | {"late": None},
        {"text": "three", "id": None, "tags": None, "more": None, "score": None, "late": True},
    ]
    assert is_right(tmp_path / "out.parquet")


@pytest.mark.parametrize("name", ["out.parquet", "out"])
def test_a_field_of_many_types_becomes_json_text(tmp_path: Path, name: str) -> None:
    """Whichever part the types are in: each is one of 256 rows here."""
    rows: list[dict[str, Any]] = [{"text": f"{n}", "a": n, "b": n, "c": {}} for n in range(600)]
    rows[500] |= {"a": "x", "b": 2**60 + 1}
    rows[10] |= {"b": 0.5}
    run(_write(tmp_path / "in.jsonl", rows), tmp_path / name)
    table = parquet.read_table(tmp_path / name)
    assert [str(table.schema.field(column).type) for column in "abc"] == ["string"] * 3
    for column in "abc":
        found = [json.loads(text) for text in table[column].to_pylist()]
        assert found == [row[column] for row in rows]


def test_a_type_that_only_a_later_part_has_is_that_of_all(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": f"{n}", "a": None, "b": 1} for n in range(600)]
    rows[599] |= {"a": "x", "b": 0.5}
    run(_write(tmp_path / "in.jsonl", rows), tmp_path / "out")
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == 3
    assert {str(parquet.read_schema(file).field("b").type) for file in files} == {"double"}
    assert {str(parquet.read_schema(file).field("a").type) for file in files} == {"string"}


def test_json_lines_out_are_the_lines_with_a_field_more(tmp_path: Path) -> None:
    lines = ['{"text": "a", "big": 123456789012345678901234567890, "f": 1.10}', ' {"text":"b" } ']
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    run(tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    found = (tmp_path / "out.jsonl").read_text().splitlines()
    assert found[0].startswith(lines[0][:-1] + ', "embedding": [')
    assert found[1].startswith('{"text":"b", "embedding": [')
    for line, text in zip(found, "ab", strict=True):
        assert np.array_equal(np.float32(json.loads(line)["embedding"]), vector(text))


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl", "out.npy"])
def test_lines_that_cannot_be_rows_are_set_aside(tmp_path: Path, name: str) -> None:
    lines = [
        b'\xef\xbb\xbf{"text": "first"}',
        b'{"text": "cut off',
        b"[1, 2]",
        b"",
        b'{"other": 1}',
        b'{"text": null}',
        b'{"text": 7}',
        b'{"text": "\\ud800"}',
        b'{"text": "fine", "more": "\\ud83d\\ude00"}',
        b'{"text": "caf\xe9"}',
        b"[" * 100_000,
        b'{"text": "\\n"}',
        b'{"text": "last"}',
    ]
    (tmp_path / "in.jsonl").write_bytes(b"\r\n".join(lines))
    summary = run(tmp_path / "in.jsonl", tmp_path / name)
    assert (summary.embedded, summary.rejected) == (3, 9)
    found = rejects(tmp_path / name)
    assert [row["line"] for row in found] == [2, 3, 5, 6, 7, 8, 10, 11, 12]
    assert [row["row"] for row in found] == [1, 2, 3, 4, 5, 6, 8, 9, 10]
    for row, reason in zip(
        found,
        [
            "The line is not JSON: Unterminated string",
            "The line is not a JSON object: '[1, 2]'.",
            "The object has no field 'text'.",
            "The text is null.",
            "The text is of type int, not a string.",
            "The line contains the lone surrogate '\\ud800'.",
            "The line is not UTF-8 at byte 13 (0xe9).",
            "The line is not JSON: maximum recursion",
            "The text is blank. Omit blank texts.",
        ],
        strict=True,
    ):
        assert row["reason"].startswith(reason)
    assert found[4]["content"] == {"text": 7}
    assert found[0]["content"] == '{"text": "cut off'


def test_a_row_that_has_the_field_already_is_set_aside(tmp_path: Path) -> None:
    source = _write(tmp_path / "in.jsonl", [{"text": "a"}, {"text": "b", "embedding": [1]}])
    run(source, tmp_path / "out.parquet")
    (reject,) = rejects(tmp_path / "out.parquet")
    assert "has a field 'embedding' already" in reject["reason"]


def test_a_field_that_all_have_already_is_refused_at_once(tmp_path: Path) -> None:
    source = _write(tmp_path / "in.jsonl", [{"text": "a", "embedding": [1]}] * 3)
    with pytest.raises(SettingError, match="have a field 'embedding' already. Name the new one"):
        run(source, tmp_path / "out.jsonl")
    assert run(source, tmp_path / "out.jsonl", embedding_column="vector").embedded == 3


@pytest.mark.parametrize("name", ["out.parquet", "out", "out.jsonl"])
def test_the_vectors_may_be_called_line(tmp_path: Path, name: str) -> None:
    run(_write(tmp_path / "in.jsonl", [{"text": "a"}]), tmp_path / name, embedding_column="line")
    if name == "out.jsonl":
        row = json.loads((tmp_path / name).read_text())
    else:
        (row,) = parquet.read_table(tmp_path / name, partitioning=None).to_pylist()
    assert np.array_equal(np.float32(row.pop("line")), vector("a"))
    assert row == {"text": "a"}


@pytest.mark.parametrize("name", ["in.jsonl.gz", "IN.JSONL.GZ"])
def test_a_packed_file_is_unpacked(tmp_path: Path, name: str) -> None:
    with gzip.open(tmp_path / name, "wt") as file:
        file.writelines(f'{{"text": "{n}"}}\n' for n in range(600))
    run(tmp_path / name, tmp_path / "out.parquet")
    assert parquet.read_table(tmp_path / "out.parquet")["text"].to_pylist() == [
        str(n) for n in range(600)
    ]


def test_a_packed_file_that_ends_early_is_an_error(tmp_path: Path) -> None:
    packed = gzip.compress(b"".join(b'{"text": "%d"}\n' % n for n in range(600)))
    (tmp_path / "in.jsonl.gz").write_bytes(packed[:-20])
    with pytest.raises(EmberdError, match="in.jsonl.gz cannot be unpacked"):
        run(tmp_path / "in.jsonl.gz", tmp_path / "out.parquet")


def test_a_name_that_no_object_has_is_refused_at_once(tmp_path: Path) -> None:
    source = _write(tmp_path / "in.jsonl", [{"texts": "a", "id": 1}])
    with pytest.raises(SettingError, match="are: texts, id. Did you mean --column 'texts'"):
        run(source, tmp_path / "out.parquet")


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_and_a_first_object_without_a_text_are_not_refused(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text(content)
    _write(tmp_path / "in/b.jsonl", [{"id": 1}, {"text": "b"}])
    summary = run(tmp_path / "in", tmp_path / "out.parquet")
    assert (summary.embedded, summary.rejected) == (1, 1)
    (reject,) = rejects(tmp_path / "out.parquet")
    assert (Path(reject["file"]).name, reject["line"]) == ("b.jsonl", 1)
    assert is_right(tmp_path / "out.parquet")


def test_a_name_that_no_object_of_the_first_file_with_rows_has_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").touch()
    _write(tmp_path / "in/b.jsonl", [{"id": 1}])
    with pytest.raises(SettingError, match="b.jsonl has no field 'text'"):
        run(tmp_path / "in", tmp_path / "out.parquet")


def test_a_huge_row_goes_through(tmp_path: Path) -> None:
    source = _write(tmp_path / "in.jsonl", [{"text": "x" * 20_000_000}, {"text": "y"}])
    run(source, tmp_path / "out.parquet")
    assert is_right(tmp_path / "out.parquet")


@pytest.mark.parametrize("content", ["", "\n\n", "no json at all\n"])
def test_nothing_to_embed_is_an_empty_table(tmp_path: Path, content: str) -> None:
    (tmp_path / "in.jsonl").write_text(content)
    run(tmp_path / "in.jsonl", tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.num_rows == 0
    assert table.schema.names == ["text", "embedding"]
    assert table.schema.field("text").type == pa.string()

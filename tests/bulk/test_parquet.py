"""Parquet in: columns of all types stay, bad rows are set aside, wrong columns are refused."""

from __future__ import annotations

import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

import bulk_standin
from bulk_standin import DIMENSIONS, is_right, rejects, run
from emberd.errors import EmberdError, SettingError


def _write(path: Path, columns: Any, **options: Any) -> Path:
    parquet.write_table(pa.table(columns), path, **options)
    return path


def test_all_columns_stay_as_they_are(tmp_path: Path) -> None:
    day = datetime.datetime(2026, 7, 1, 12, tzinfo=datetime.UTC)
    columns = {
        "text": ["ein Text", "四", "café \U0001f600"],
        "id": pa.array([1, 2**62, None], pa.int64()),
        "small": pa.array([1, 2, 3], pa.uint8()),
        "half": pa.array([0.5, 1.5, 2.5], pa.float16()),
        "score": [0.1, float("nan"), None],
        "raw": [b"\xff\x00", None, b""],
        "when": pa.array([day, None, day], pa.timestamp("us", "Europe/Berlin")),
        "date": [datetime.date(2026, 7, 1)] * 3,
        "price": [decimal.Decimal("1.10"), None, decimal.Decimal("-3.00")],
        "tags": [["a", None], [], None],
        "more": [{"x": 1, "y": ["z"]}, None, {"x": None, "y": None}],
        "map": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int32())),
        "fixed": pa.array([[1.0, 2.0]] * 3, pa.list_(pa.float32(), 2)),
        "kind": pa.array(["a", "b", "a"]).dictionary_encode(),
        "large": pa.array(["x", "y", None], pa.large_string()),
        "nothing": pa.nulls(3),
        "flag": [True, False, None],
        "length": pa.array([1, 2, 3], pa.duration("ms")),
    }
    source = _write(tmp_path / "in.parquet", columns)
    before = parquet.read_table(source)
    for name in ("out.parquet", "out"):
        run(source, tmp_path / name)
        after = parquet.read_table(tmp_path / name, partitioning=None)
        assert after.drop_columns("embedding").schema == before.schema
        assert str(after.drop_columns("embedding").to_pylist()) == str(before.to_pylist())
        assert after.schema.field("embedding").type == pa.list_(pa.float32(), DIMENSIONS)
        assert is_right(tmp_path / name)


def test_what_other_programs_wrote_into_the_metadata_stays(tmp_path: Path) -> None:
    """Such as pandas, which finds its index there."""
    table = pa.table({"text": ["a", " ", "c"]}).replace_schema_metadata({"pandas": "{}"})
    parquet.write_table(table, tmp_path / "in.parquet")
    run(tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert parquet.read_schema(tmp_path / "out.parquet").metadata[b"pandas"] == b"{}"


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_texts_may_be_of_any_type_of_text(tmp_path: Path, kind: str) -> None:
    texts = pa.array(["one", None, "one"])
    column = texts.dictionary_encode() if kind == "dictionary" else texts.cast(getattr(pa, kind)())
    run(_write(tmp_path / "in.parquet", {"text": column}), tmp_path / "out.parquet")
    assert is_right(tmp_path / "out.parquet")
    assert [row["row"] for row in rejects(tmp_path / "out.parquet")] == [1]


def test_bad_rows_are_set_aside_with_what_was_wrong(tmp_path: Path) -> None:
    texts = pa.array([b"one", None, b"caf\xe9", b"  ", b"two"]).view(pa.string())
    source = _write(tmp_path / "in.parquet", {"text": texts, "id": [10, 11, 12, 13, 14]})
    summary = run(source, tmp_path / "out.parquet")
    assert (summary.embedded, summary.rejected) == (2, 3)
    assert parquet.read_table(tmp_path / "out.parquet")["id"].to_pylist() == [10, 14]
    null, wrong, blank = rejects(tmp_path / "out.parquet")
    assert null == {
        "row": 1,
        "file": str(source),
        "file_row": 1,
        "reason": "The text is null.",
        "content": {"text": None, "id": 11},
    }
    assert (wrong["row"], wrong["reason"]) == (2, "The text is not UTF-8.")
    assert (blank["row"], blank["reason"]) == (3, "The text is blank. Omit blank texts.")


def test_files_are_one_table_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in (2, 1, 3):
        columns = {"text": [f"{number} {n}" for n in range(300)], "n": pa.array(range(300))}
        _write(tmp_path / f"in/{number}.parquet", columns, row_group_size=70)
    run(tmp_path / "in", tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table["text"].to_pylist() == [f"{k} {n}" for k in (1, 2, 3) for n in range(300)]
    assert is_right(tmp_path / "out.parquet")


def test_a_column_that_only_some_files_have_is_null_in_the_others(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    _write(tmp_path / "in/1.parquet", {"text": ["a"], "n": pa.array([1], pa.int32())})
    _write(tmp_path / "in/2.parquet", {"more": ["x"], "n": [2**40], "text": ["b"]})
    run(tmp_path / "in", tmp_path / "out.parquet")
    rows = parquet.read_table(tmp_path / "out.parquet").drop_columns("embedding").to_pylist()
    first, second = {"text": "a", "n": 1, "more": None}, {"text": "b", "n": 2**40, "more": "x"}
    assert rows == [first, second]


def test_files_of_types_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    _write(tmp_path / "in/1.parquet", {"text": ["a"], "n": [1]})
    _write(tmp_path / "in/2.parquet", {"text": ["a"], "n": ["one"]})
    with pytest.raises(SettingError, match=r"columns of .*2.parquet differ from .*1.parquet: .*n"):
        run(tmp_path / "in", tmp_path / "out.parquet")


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (
            {"body": ["a"], "id": [1]},
            "no column 'text'. Its columns are: body, id. Name one: --column",
        ),
        ({"Text": ["a"], "id": [1]}, "Did you mean --column 'Text'?"),
        ({"text": [1, 2]}, "holds int64, not texts"),
        (
            {"text": ["a"], "embedding": [1]},
            "a column 'embedding' already. Name the new one: --emb",
        ),
    ],
)
def test_a_column_that_cannot_be_used_is_refused(tmp_path: Path, columns: Any, says: str) -> None:
    source = _write(tmp_path / "in.parquet", columns)
    with pytest.raises(SettingError) as raised:
        run(source, tmp_path / "out.parquet")
    assert says in str(raised.value)
    assert list(tmp_path.iterdir()) == [source]


def test_a_file_without_the_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    _write(tmp_path / "in/1.parquet", {"text": ["a"]})
    _write(tmp_path / "in/2.parquet", {"body": ["a"]})
    for shape in ("out.parquet", "out.npy"):
        with pytest.raises(SettingError, match="2.parquet has no column 'text'"):
            run(tmp_path / "in", tmp_path / shape)


def test_a_later_file_that_has_the_embedding_column_already_is_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    _write(tmp_path / "in/1.parquet", {"text": ["a"]})
    _write(tmp_path / "in/2.parquet", {"text": ["a"], "embedding": ["precious"]})
    with pytest.raises(SettingError, match="2.parquet has a column 'embedding' already"):
        run(tmp_path / "in", tmp_path / "out.parquet")


def test_a_later_file_whose_column_holds_no_texts_is_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    _write(tmp_path / "in/1.parquet", {"text": [None]})
    _write(tmp_path / "in/2.parquet", {"text": [1]})
    with pytest.raises(SettingError, match="2.parquet holds int64, not texts"):
        run(tmp_path / "in", tmp_path / "out.parquet")


def test_other_names_of_columns_can_be_given(tmp_path: Path) -> None:
    source = _write(tmp_path / "in.parquet", {"body": ["a"], "embedding": [1], "text": [None]})
    run(source, tmp_path / "out.parquet", column="body", embedding_column="vector")
    (row,) = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert np.allclose(row.pop("vector"), bulk_standin.vector("a"))
    assert row == {"body": "a", "embedding": 1, "text": None}


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("name", ["out.parquet", "out", "out.npy", "out.jsonl"])
def test_few_rows_are_an_output_too(tmp_path: Path, rows: int, name: str) -> None:
    source = _write(tmp_path / "in.parquet", {"text": pa.array(["x"] * rows, pa.string())})
    assert run(source, tmp_path / name).embedded == rows
    if name == "out.npy":
        assert np.load(tmp_path / name).shape == (rows, DIMENSIONS)
    elif name == "out.jsonl":
        assert len((tmp_path / name).read_text().splitlines()) == rows
    else:
        assert parquet.read_table(tmp_path / name).num_rows == rows


def test_what_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "in.parquet").write_text("not at all")
    with pytest.raises(EmberdError, match="in.parquet cannot be read as Parquet"):
        run(tmp_path / "in.parquet", tmp_path / "out.parquet")


def test_the_output_says_what_its_vectors_were_made_with(tmp_path: Path) -> None:
    source = _write(tmp_path / "in.parquet", {"text": ["a"]})
    for name in ("out.parquet", "out"):
        run(source, tmp_path / name)
        (path,) = [tmp_path / name] if name == "out.parquet" else (tmp_path / name).iterdir()
        metadata = parquet.read_schema(path).metadata
        assert metadata[b"emberd.index_identity"] == b"emberd:stand-in"


@pytest.mark.parametrize("name", ["out.parquet", "out", "out.jsonl"])
@pytest.mark.parametrize("lines", [[1, 2], [b'{"x": 1}', b'{"x": 2}'], ["a", "b"]])
def test_a_column_may_be_called_line(tmp_path: Path, name: str, lines: list[Any]) -> None:
    source = _write(tmp_path / "in.parquet", {"text": ["a", "b"], "id": [7, 8], "line": lines})
    run(source, tmp_path / name)
    if name == "out.jsonl":
        rows = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        assert [row["id"] for row in rows] == [7, 8]
        assert [list(row) for row in rows] == [["text", "id", "line", "embedding"]] * 2
    else:
        table = parquet.read_table(tmp_path / name, partitioning=None)
        assert (table["id"].to_pylist(), table["line"].to_pylist()) == ([7, 8], lines)


def test_what_json_cannot_hold_is_named_with_its_column(tmp_path: Path) -> None:
    other = pa.array([b"\xff", b"x"]).view(pa.string())
    source = _write(tmp_path / "in.parquet", {"text": ["a", "b"], "other": other})
    with pytest.raises(EmberdError, match="The column 'other' cannot be written as JSON: .*utf-8"):
        run(source, tmp_path / "out.jsonl")


def test_numbers_that_json_has_no_word_for_are_null(tmp_path: Path) -> None:
    columns = {"text": ["a", None], "x": [float("nan")] * 2, "y": [[float("inf"), 0.5]] * 2}
    run(_write(tmp_path / "in.parquet", columns), tmp_path / "out.jsonl")
    (reject,) = rejects(tmp_path / "out.jsonl")
    for row in (json.loads((tmp_path / "out.jsonl").read_text()), reject["content"]):
        assert (row["x"], row["y"]) == (None, [None, 0.5])


def test_a_row_whose_other_values_python_cannot_hold_is_set_aside_without_them(
    tmp_path: Path,
) -> None:
    other = pa.array([b"x", b"\xff"]).view(pa.string())
    source = _write(tmp_path / "in.parquet", {"text": ["a", None], "other": other})
    assert run(source, tmp_path / "out.parquet").rejected == 1
    assert rejects(tmp_path / "out.parquet")[0]["content"] is None


def test_two_columns_of_the_name_are_refused(tmp_path: Path) -> None:
    table = pa.table([["a"], ["b"]], names=["text", "text"])
    parquet.write_table(table, tmp_path / "in.parquet")
    with pytest.raises(SettingError, match="has several columns 'text'"):
        run(tmp_path / "in.parquet", tmp_path / "out.parquet")

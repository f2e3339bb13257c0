"""What becomes of a piece: no column is lost, no bad row ends it, no late worker writes."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import dataset, parquet

from emberd.bulk import inputs
from emberd.bulk.arrow import IDENTITY_KEY
from emberd.ray import units
from emberd.ray.jobs import Order
from emberd.ray.parts import FAILURE, Output, Writer
from emberd.settings import Settings
from fake_server import FakeServer, vector_of


@pytest.fixture
def url() -> Iterator[str]:
    with FakeServer() as server:
        yield server.url


def order(url: str, source: Path, output: Path) -> Order:
    settings = Settings(model="test/model", base_url=url)
    return Order(inputs.find([str(source)]), output, settings)


def begun(given: Order) -> Writer:
    """Return a worker of a job that has begun."""
    Output(given.output).make()
    Output(given.output).note(given.asked())
    return Writer(**given.for_writers())


def do(writer: Writer, given: Order) -> None:
    """Do all pieces of a job, as a worker does."""
    for unit in units.cut(given.inputs):
        if failure := writer(asdict(unit))[FAILURE]:
            raise pickle.loads(failure)


def parts(url: str, source: Path) -> tuple[Any, list[dict[str, Any]]]:
    """Return the rows that a job writes, and those that it sets aside."""
    given = order(url, source, source.parent / "out")
    do(begun(given), given)
    told = [path.read_text() for path in Output(given.output).set_aside.iterdir()]
    aside = [json.loads(line) for text in told for line in text.splitlines()]
    return dataset.dataset(given.output).to_table(), aside


def test_a_column_called_error_stays(url: str, tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["a", None], "error": ["E1", "E2"]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    found, aside = parts(url, tmp_path / "rows.parquet")
    assert found["error"].to_pylist() == ["E1"]
    assert [row["reason"] for row in aside] == ["The text is null."]


def test_rows_that_cannot_be_embedded_do_not_end_the_job(url: str, tmp_path: Path) -> None:
    lines = [
        {"text": "a", "meta": {}},
        {"text": 5, "meta": {}},
        {"text": "b", "embedding": "precious"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found, aside = parts(url, tmp_path / "rows.jsonl")
    assert found.select(["text", "meta"]).to_pylist() == [{"text": "a", "meta": "{}"}]
    assert [row["reason"][:30] for row in aside] == [
        "The text is of type int, not a",
        "The object has a field 'embedd",
    ]


def test_a_text_that_is_not_utf8_is_set_aside(url: str, tmp_path: Path) -> None:
    texts = pyarrow.array([b"ok", b"\xff"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "rows.parquet")
    found, aside = parts(url, tmp_path / "rows.parquet")
    assert found["text"].to_pylist() == ["ok"]
    assert [(row["reason"], row["text"]) for row in aside] == [("The text is not UTF-8.", "\ufffd")]


def test_a_text_file_is_embedded_as_its_bytes_are(url: str, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.txt").write_bytes(b"one\r\ntwo\r\n")
    (source / "b.txt").symlink_to(tmp_path / "nowhere")
    found, aside = parts(url, source)
    (row,) = found.to_pylist()
    assert row["text"] == "one\r\ntwo\r\n"
    assert np.allclose(row["embedding"], vector_of(row["text"]), atol=1e-5)
    assert [row["reason"][:23] for row in aside] == ["The file cannot be read"]


def test_each_part_says_what_its_vectors_are_made_with(url: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}')
    found, _ = parts(url, tmp_path / "rows.jsonl")
    expected = order(url, tmp_path / "rows.jsonl", tmp_path / "out").identity
    assert found.schema.metadata[IDENTITY_KEY].decode() == expected


def test_a_worker_of_the_job_before_a_restart_writes_nothing(url: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"id": 1}\n')
    given = order(url, tmp_path / "rows.jsonl", tmp_path / "out")
    late = begun(given)
    Output(given.output).begin(anew=True)
    fresh = begun(given)
    with pytest.raises(Exception, match="begun anew by another run"):
        do(late, given)
    assert not [path for path in given.output.rglob("*part-*") if path.is_file()]
    do(fresh, given)
    assert Output(given.output).done("part-00000-00000") is not None

"""The same input gives the same output, rejects, summary and exit code with and without Ray."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import dataset, parquet

from emberd import Embedder
from emberd.bulk import units
from emberd.cli import embed as embed_command
from emberd.cli import output
from emberd.ray.executor import ray_executor
from fake_server import FakeServer
from ray_cluster import Nodes


@pytest.fixture
def url(ray_nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(units, "UNIT_ROWS", 60)
    monkeypatch.setattr(units, "UNIT_BYTES", 3000)
    monkeypatch.setattr(units, "UNIT_FILES", 2)
    with FakeServer() as server:
        yield server.url


def _parquet_files(folder: Path) -> None:
    texts = [f"row {n}" if n % 17 else None for n in range(130)]
    nested = [{"x": n, "tags": [str(n)] if n % 2 else []} if n % 5 else None for n in range(130)]
    columns = {"text": texts, "n": pa.array(range(130), pa.int32()), "nested": nested}
    parquet.write_table(pa.table(columns), folder / "a.parquet", row_group_size=30)
    invalid = pa.array([b"ok", b"\xff", b"fine"]).view(pa.string())
    more = {"more": [1.5, None, float("nan")], "n": [2**40, None, 1], "text": invalid}
    parquet.write_table(pa.table(more), folder / "b.parquet")
    parquet.write_table(pa.table({"text": pa.array([], pa.string())}), folder / "c.parquet")


def _json_lines_files(folder: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": f"row {n}", "n": n, "mixed": n, "nested": {"x": n}, "empty": {}, "late": None}
        for n in range(400)
    ]
    rows[350] |= {"mixed": "text", "n": 0.5, "nested": {"x": None, "y": ["z"]}, "late": True}
    rows[30] |= {"text": None}
    rows[31] |= {"text": 7}
    rows[32] |= {"embedding": "existing"}
    rows[300] |= {"big": 2**60 + 1}
    rows[20] |= {"big": 0.5}
    lines = [json.dumps(row).encode() for row in rows]
    lines[40:40] = [b"", b"{bad", b"[1]", b'{"text": "\\ud800"}', b'{"text": "caf\xe9"}', b"  "]
    (folder / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines) + b"\n\n")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b"\n".join(lines[:60])))
    (folder / "c.ndjson").write_bytes(b'\n{"text": "only", "new": [1, null]}\n{"id": 1}')
    (folder / "d.jsonl").write_bytes(b"")


def _text_files(folder: Path) -> None:
    (folder / "a.md").write_bytes(b"\xef\xbb\xbf# One\r\n")
    (folder / "b.txt").write_bytes(b"caf\xe9")
    (folder / "c.rst").symlink_to("nowhere")
    (folder / "d.txt").write_text("four")
    (folder / "e.txt").write_text("five")
    (folder / "f.png").write_bytes(b"\x89PNG")


def _content(target: Path) -> Any:
    if target.suffix == ".npy":
        numbers = target.with_suffix(".rows.npy").read_bytes()
        return target.read_bytes(), numbers
    if target.suffix == ".jsonl":
        return target.read_bytes()
    if target.suffix == ".parquet":
        table = parquet.read_table(target)
    else:
        names = [path.name for path in target.iterdir()]
        assert all(re.fullmatch(r"part-\d+\.parquet", name) for name in names)
        files = [parquet.read_table(path) for path in sorted(target.iterdir())]
        assert len({str(file.schema.to_string(show_schema_metadata=True)) for file in files}) == 1
        table = dataset.dataset(target).to_table()
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    rest = str(table.drop_columns("embedding").to_pylist())
    return table.schema, table.schema.metadata, vectors.tobytes(), rest


def _embed(
    source: Path, target: Path, url: str, notes: list[str], *, on_ray: bool
) -> tuple[Any, ...]:
    embedder = Embedder("test/model", base_url=url)
    if on_ray:
        executor = ray_executor(embedder.settings)
    else:
        executor = embed_command._local_executor(embedder, "document")
    code = embed_command.embed_data(
        [str(source)],
        target,
        None,
        embedder,
        executor=executor,
        connected=nullcontext(),
        save_every_s=0.0,
    )
    rejects = target.with_name(f"{target.name}.rejects.jsonl")
    report = re.sub(r"\d+\.\d s \(\d+ rows/s\)", "", "\n".join(notes))
    report = report.replace(str(target.parent), "")
    notes.clear()
    return code, report, _content(target), rejects.read_bytes()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (_parquet_files, "out.parquet"),
        (_parquet_files, "out.npy"),
        (_json_lines_files, "out"),
        (_json_lines_files, "out.jsonl"),
        (_text_files, "out"),
    ],
)
def test_the_output_is_the_same_with_and_without_ray(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, name: str
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(output, "note", notes.append)
    source = tmp_path / "in"
    source.mkdir()
    make(source)
    found = []
    for on_ray in (False, True):
        folder = tmp_path / ("ray" if on_ray else "local")
        folder.mkdir()
        found.append(_embed(source, folder / name, url, notes, on_ray=on_ray))
    (code, report, content, rejects), by_ray = found
    assert code == 6
    assert "could not be embedded" in report
    assert by_ray[:2] == (code, report)
    assert by_ray[3] == rejects
    assert by_ray[2] == content

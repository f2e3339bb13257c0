"""``emberd embed`` with the model that tests and users try first."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from pyarrow import parquet

import managed
from command import Command
from emberd import Embedder

stopped_at_the_end = managed.stopped_at_the_end


def test_blank_lines_are_rows_too(managed_home: Path) -> None:
    done = Command(managed_home)("embed", "--model", managed.MODEL, stdin="a\n\nb\n")
    assert [len(line) > 100 for line in done.out.splitlines()] == [True] * 3


def test_queries_are_embedded_as_queries(managed_home: Path) -> None:
    done = Command(managed_home)("embed", "-m", managed.MODEL, "-t", "x", "--as", "query")
    vector = json.loads(done.out)["embedding"]
    embedder = Embedder(managed.MODEL)
    assert managed.same(vector, embedder.embed_query("x"))
    assert not managed.same(vector, embedder.embed_documents(["x"])[0])


def test_rows_of_data_get_their_vectors(managed_home: Path, tmp_path: Path) -> None:
    texts = list(managed.PASSAGES.values())
    source, target = tmp_path / "in.jsonl", tmp_path / "out.parquet"
    source.write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
    arguments = ("--model", managed.MODEL, str(source), "-o", str(target))
    assert Command(managed_home)("embed", *arguments).code == 0
    vectors = np.array(parquet.read_table(target)["embedding"].to_pylist(), np.float32)
    assert managed.same(vectors, Embedder(managed.MODEL).embed_documents(texts))

"""``emberd embed`` with the model that tests and users try first."""

from __future__ import annotations

import json
from pathlib import Path

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

"""Collections that ``emberd reindex`` reads and writes, filled without a framework."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import chromadb
import lancedb
import numpy as np
import pyarrow
from qdrant_client import QdrantClient, models

from emberd.stores.opening import open_store
from emberd.stores.rows import Row, RowStore

NAME: Final = "passages"
OLD: Final = 12
DIMENSIONS: Final = 32  # of the new collections


def content(number: int) -> tuple[str, dict[str, Any]]:
    """Return the text and the metadata of a row."""
    return f"passage {number}: {'word ' * (number % 7)}", {
        "number": number,
        "even": number % 2 == 0,
    }


def fill(kind: str, folder: Path, numbers: Iterable[int], name: str = NAME) -> None:
    """Add rows with vectors of another model to a collection, which is created if it is missing."""
    numbers = list(numbers)
    vectors = np.random.default_rng(0).normal(size=(len(numbers), OLD)).astype(np.float32)
    texts, metadata = zip(*map(content, numbers), strict=True)
    if kind == "chroma":
        client = chromadb.PersistentClient(folder)
        made = client.get_or_create_collection(
            name, configuration={"hnsw": {"space": "cosine"}}, embedding_function=None
        )
        made.add(list(map(str, numbers)), vectors, list(metadata), list(texts))
        client.close()
    elif kind == "qdrant":
        qdrant = QdrantClient(path=str(folder))
        if not qdrant.collection_exists(name):
            size = models.VectorParams(size=OLD, distance=models.Distance.COSINE)
            qdrant.create_collection(name, size, metadata={"mine": 1})
        payloads = [
            {"page_content": text, "metadata": each}
            for text, each in zip(texts, metadata, strict=True)
        ]
        parts = zip(numbers, vectors.tolist(), payloads, strict=True)
        points = [models.PointStruct(id=n, vector=v, payload=p) for n, v, p in parts]
        qdrant.upsert(name, points)
        qdrant.close()
    else:
        rows = [
            {"id": str(n), "vector": v, "text": t, "metadata": m}
            for n, v, t, m in zip(numbers, vectors, texts, metadata, strict=True)
        ]
        database = lancedb.connect(folder)
        with suppress(ValueError):
            database.open_table(name).add(rows)
            return
        schema = pyarrow.schema(
            [
                ("id", pyarrow.string()),
                ("vector", pyarrow.list_(pyarrow.float32(), OLD)),
                ("text", pyarrow.string()),
                (
                    "metadata",
                    pyarrow.struct([("number", pyarrow.int64()), ("even", pyarrow.bool_())]),
                ),
            ]
        )
        database.create_table(name, pyarrow.Table.from_pylist(rows, schema=schema))


class opened:  # noqa: N801 - used as a function
    """The store of a folder, closed at the end: a folder of Qdrant has one user at a time."""

    def __init__(self, kind: str, folder: Path) -> None:
        self._where = f"{kind}:{folder}"

    def __enter__(self) -> RowStore:
        self._store = open_store(self._where)
        return self._store

    def __exit__(self, *_: object) -> None:
        with suppress(AttributeError):
            self._store.client.close()


def row_with(store: RowStore, number: Any, text: str) -> Row:
    """Return a row like those of ``fill``, with another text."""
    metadata: dict[str, Any] = {"number": int(number), "even": False}
    contents: dict[str, dict[str, Any]] = {
        "chromadb": {"documents": text, "metadatas": metadata, "uris": None},
        "qdrant_client": {"payload": {"page_content": text, "metadata": metadata}, "sparse": {}},
        "lancedb": {"id": number, "text": text, "metadata": metadata},
    }
    return Row(number, contents[store.package], "")


def text_of(store: RowStore, row: Row) -> str:
    """Return the text of a row of ``fill`` or ``row_with``."""
    _, text = store.fields(row.content)
    assert text is not None
    return text


def rows_of(store: RowStore, name: str) -> dict[Any, list[str]]:
    """Return the content of all rows, by id."""
    found: dict[Any, list[str]] = {}
    for ids in store.id_pages(name):
        found |= {each: [row.key for row in rows] for each, rows in store.rows(name, ids).items()}
    return found


def vectors_of(store: RowStore, name: str) -> dict[str, list[np.ndarray[Any, Any]]]:
    """Return the vectors of all rows, by id."""
    client: Any = store.client
    found: dict[str, list[Any]] = {}
    parts: Iterable[tuple[Any, Any]]
    if store.package == "chromadb":
        got = client.get_collection(name, embedding_function=None).get(include=["embeddings"])
        parts = zip(got["ids"], got["embeddings"], strict=True)
    elif store.package == "qdrant_client":
        points, _ = client.scroll(name, limit=100_000, with_vectors=True)
        parts = ((str(each.id), each.vector) for each in points)
    else:
        rows = client.open_table(name).to_arrow().to_pylist()
        parts = ((row["id"], row["vector"]) for row in rows)
    for row_id, vector in parts:
        found.setdefault(str(row_id), []).append(np.asarray(vector, np.float32))
    return found

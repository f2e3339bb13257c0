"""``emberd reindex`` on real stores, with the vectors of a server that computes them from texts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from qdrant_client import models

from emberd import Embedder, EmberdError, IdentityError, SettingError, guarded
from emberd.stores import rows as rows_module
from emberd.stores.reindexing import reindex
from emberd.stores.rows import Row, RowStore
from fake_server import QWEN, FakeServer
from stores.reindexed import NAME, OLD, content, fill, opened, rows_of, vectors_of

KINDS: Final = ("chroma", "qdrant", "lancedb")
every_kind = pytest.mark.parametrize("kind", KINDS)
DIMENSIONS: Final = 32


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer(model=QWEN, dimensions=1024) as found:
        yield found


@pytest.fixture
def embedder(server: FakeServer) -> Embedder:
    return Embedder(QWEN, base_url=server.url, dimensions=DIMENSIONS)


def check(kind: str, folder: Path, name: str, numbers: range, embedder: Embedder) -> None:
    """Assert that a collection has these rows, with the vectors of ``embedder``."""
    with opened(kind, folder) as store:
        rows, vectors = rows_of(store, name), vectors_of(store, name)
    assert sorted(int(each) for each in rows) == list(numbers)
    assert {each: len(found) for each, found in rows.items()} == dict.fromkeys(rows, 1)
    wanted = embedder.embed_documents([content(number)[0] for number in numbers])
    found = np.array([vectors[str(number)][0] for number in numbers])
    assert np.allclose(found, wanted, atol=1e-5)


@every_kind
def test_a_collection_is_embedded_beside_the_old_one(
    kind: str, tmp_path: Path, embedder: Embedder
) -> None:
    fill(kind, tmp_path, range(50))
    with opened(kind, tmp_path) as store:
        before = rows_of(store, NAME), vectors_of(store, NAME)
        summary = reindex(store, NAME, embedder)
        assert (summary.rows, summary.embedded) == (50, 50)
        assert store.place(summary.collection).read() == embedder.identity
        assert rows_of(store, summary.collection) == before[0]
        assert str(vectors_of(store, NAME)) == str(before[1])
        again = reindex(store, NAME, embedder)
        assert (again.collection, again.embedded) == (summary.collection, 0)
    check(kind, tmp_path, summary.collection, range(50), embedder)


@every_kind
def test_rows_that_change_meanwhile_are_found_by_a_later_pass(
    kind: str, tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "PAGE_ROWS", 16)
    fill(kind, tmp_path, range(60))
    with opened(kind, tmp_path) as store:
        changes = iter([True])

        def change(done: int, total: int) -> None:
            if next(changes, False):
                number = (int if kind == "qdrant" else str)(1)
                store.put(NAME, [changed_row(store, number)], np.ones((1, OLD), np.float32))
                store.delete(NAME, [(int if kind == "qdrant" else str)(0)])
                more = [added_row(store, each) for each in range(60, 70)]
                store.put(NAME, more, np.ones((10, OLD), np.float32))

        summary = reindex(store, NAME, embedder, watch=change)
        assert (summary.rows, summary.removed) == (69, 1)
        assert rows_of(store, summary.collection) == rows_of(store, NAME)
        vectors = vectors_of(store, summary.collection)
        assert np.allclose(vectors["1"][0], embedder.embed_documents(["changed"])[0], atol=1e-5)


def row_with(store: RowStore, number: Any, text: str) -> Row:
    """Return a row like those of ``fill``, with another text."""
    metadata: dict[str, Any] = {"number": int(number), "even": False}
    contents: dict[str, dict[str, Any]] = {
        "chromadb": {"documents": text, "metadatas": metadata, "uris": None},
        "qdrant_client": {"payload": {"page_content": text, "metadata": metadata}, "sparse": {}},
        "lancedb": {"id": number, "text": text, "metadata": metadata},
    }
    return Row(number, contents[store.package], text, "")


def changed_row(store: RowStore, number: Any) -> Row:
    return row_with(store, number, "changed")


def added_row(store: RowStore, number: int) -> Row:
    kind = int if store.package == "qdrant_client" else str
    return row_with(store, kind(number), f"added {number}")


@every_kind
def test_an_incomplete_collection_is_continued_only_with_the_same_settings_and_not_opened(
    kind: str, tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "PAGE_ROWS", 16)
    fill(kind, tmp_path, range(60))
    with opened(kind, tmp_path) as store:
        with pytest.raises(EmberdError, match="interrupted"):
            reindex(store, NAME, embedder, to="new-one", watch=interrupted_after(32))
        guarded_open = partial(guarded, None, at=(store.client, "new-one"))
        with pytest.raises(IdentityError, match="incomplete"):
            guarded_open(embedder)
        other = embedder.replace(dimensions=64)
        with pytest.raises(IdentityError, match="dimensions 32 there, 64 here"):
            reindex(store, NAME, other, to="new-one")
        with pytest.raises(SettingError, match="incomplete"):
            reindex(store, "new-one", other)
        assert reindex(store, NAME, embedder, to="new-one").embedded == 60 - 32
        guarded_open(embedder)
    check(kind, tmp_path, "new-one", range(60), embedder)


def interrupted_after(rows: int) -> Callable[[int, int], None]:
    def watch(done: int, total: int) -> None:
        if done >= rows:
            raise EmberdError("interrupted")

    return watch


@every_kind
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    kind: str, tmp_path: Path, embedder: Embedder
) -> None:
    fill(kind, tmp_path, range(3))
    fill(kind, tmp_path, range(3), "other")
    with opened(kind, tmp_path) as store:
        before = rows_of(store, "other")
        with pytest.raises(SettingError, match="did not create it"):
            reindex(store, NAME, embedder, to="other")
        with pytest.raises(SettingError, match="old collection"):
            reindex(store, NAME, embedder, to=NAME)
        with pytest.raises(SettingError, match="no collection 'missing'"):
            reindex(store, "missing", embedder)
        if kind != "chroma":
            with pytest.raises(SettingError, match="--switch"):
                reindex(store, NAME, embedder, switch=True)
            assert not store.exists(f"{NAME}-{digest_of(embedder)}")
        assert rows_of(store, "other") == before
    with opened(kind, tmp_path) as store:
        store.text_field = "missing"
        with pytest.raises(EmberdError, match="has no text"):
            reindex(store, NAME, embedder)


def digest_of(embedder: Embedder) -> str:
    return hashlib.sha256(embedder.identity.encode()).hexdigest()[:8]


@every_kind
def test_two_runs_for_one_collection_do_not_run_at_once(
    kind: str, tmp_path: Path, embedder: Embedder
) -> None:
    fill(kind, tmp_path, range(3))
    with opened(kind, tmp_path) as store:

        def second(done: int, total: int) -> None:
            with pytest.raises(EmberdError, match="in use by another emberd"):
                reindex(store, NAME, embedder)

        assert reindex(store, NAME, embedder, watch=second).embedded == 3


@every_kind
def test_a_complete_collection_is_changed_only_when_that_is_wanted(
    kind: str, tmp_path: Path, embedder: Embedder
) -> None:
    fill(kind, tmp_path, range(20))
    with opened(kind, tmp_path) as store:
        new = reindex(store, NAME, embedder).collection
    fill(kind, tmp_path, range(20, 30))
    with opened(kind, tmp_path) as store:
        assert reindex(store, NAME, embedder).rows == 20
        assert reindex(store, NAME, embedder, update=True).embedded == 10
        store.delete(NAME, [(int if kind == "qdrant" else str)(3)])
        with pytest.raises(EmberdError, match="1 rows that 'passages' does not have"):
            reindex(store, NAME, embedder, update=True)
    check(kind, tmp_path, new, range(30), embedder)


def test_chroma_renames_and_a_switch_that_was_interrupted_is_finished(
    tmp_path: Path, embedder: Embedder
) -> None:
    fill("chroma", tmp_path, range(20))
    other = embedder.replace(dimensions=64)
    with opened("chroma", tmp_path) as store:
        new = reindex(store, NAME, embedder).collection
        store.client.get_collection(NAME).modify(name=f"{NAME}-before-{digest_of(embedder)}")
        with pytest.raises(SettingError, match="with --switch, which finishes it"):
            reindex(store, NAME, embedder)
        with pytest.raises(SettingError, match="no collection 'passages'"):
            reindex(store, NAME, other, to=new, switch=True)
        assert reindex(store, NAME, embedder, switch=True).switched
        assert reindex(store, NAME, embedder, switch=True).embedded == 0
        assert reindex(store, NAME, other, switch=True).embedded == 20
        names = {each.name for each in store.client.list_collections()}
    assert names == {NAME, *(f"{NAME}-before-{digest_of(each)}" for each in (embedder, other))}
    check("chroma", tmp_path, NAME, range(20), other)


def test_qdrant_changes_an_alias(tmp_path: Path, embedder: Embedder) -> None:
    fill("qdrant", tmp_path, range(20))
    with opened("qdrant", tmp_path) as store:
        alias = models.CreateAlias(collection_name=NAME, alias_name="in-use")
        store.client.update_collection_aliases([models.CreateAliasOperation(create_alias=alias)])
        summary = reindex(store, "in-use", embedder, switch=True)
        assert summary.switched
        assert store.resolve("in-use") == summary.collection
        assert store.client.get_collection("in-use").config.metadata["mine"] == 1
        assert reindex(store, "in-use", embedder).embedded == 0
        assert store.count(NAME) == 20
    check("qdrant", tmp_path, "in-use", range(20), embedder)


def test_qdrant_keeps_names_of_vectors_and_sparse_ones(tmp_path: Path, embedder: Embedder) -> None:
    fill("qdrant", tmp_path, range(1), "other")
    with opened("qdrant", tmp_path) as store:
        size = models.VectorParams(size=OLD, distance=models.Distance.COSINE)
        sparse = {"words": models.SparseVectorParams(modifier=models.Modifier.IDF)}
        store.client.create_collection(NAME, {"dense": size}, sparse_vectors_config=sparse)
        words = models.SparseVector(indices=[3, 9], values=[0.5, 0.25])
        vector = {"dense": [1.0] * OLD, "words": words}
        point = models.PointStruct(id=7, vector=vector, payload={"text": "a text"})
        store.client.upsert(NAME, [point])
        new = reindex(store, NAME, embedder).collection
        (found,) = store.client.retrieve(new, [7], with_vectors=True)
        assert found.vector["words"] == words
        assert np.allclose(
            found.vector["dense"], embedder.embed_documents(["a text"])[0], atol=1e-5
        )
        assert store.client.get_collection(new).config.params.sparse_vectors == sparse


def test_lancedb_keeps_all_rows_of_one_id(
    tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LangChain gives equal texts one id, whatever their metadata are."""
    monkeypatch.setattr(rows_module, "PAGE_ROWS", 4)
    for _ in range(2):
        fill("lancedb", tmp_path, range(10))
    with opened("lancedb", tmp_path) as store:
        more = row_with(store, "5", "another text")
        table = store.client.open_table(NAME)
        table.add([{**more.content, "vector": [0.0] * OLD}])
        new = reindex(store, NAME, embedder).collection
        assert rows_of(store, new) == rows_of(store, NAME)
        assert store.count(new) == 21
        vectors = np.array(vectors_of(store, new)["5"])
    wanted = embedder.embed_documents([content(5)[0], content(5)[0], "another text"])
    assert np.allclose(np.sort(vectors, axis=0), np.sort(wanted, axis=0), atol=1e-5)

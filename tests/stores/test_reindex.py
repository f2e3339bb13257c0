"""``emberd reindex`` on real stores, with the vectors of a server that computes them from texts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import lancedb
import numpy as np
import pyarrow
import pytest
from qdrant_client import models

from emberd import CollectionRowError, Embedder, EmberdError, IdentityError, SettingError, guarded
from emberd.stores import places
from emberd.stores import rows as rows_module
from emberd.stores.reindexing import RESUME_HINT, reindex
from emberd.stores.rows import Row, RowStore
from stores.reindexed import (
    DIMENSIONS,
    NAME,
    OLD,
    content,
    fill,
    opened,
    row_with,
    rows_of,
    vectors_of,
)

KINDS: Final = ("chroma", "qdrant", "lancedb")
every_kind = pytest.mark.parametrize("kind", KINDS)


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
        with pytest.raises(CollectionRowError, match="has no text"):
            reindex(store, NAME, embedder, text_field="missing")


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


def completed_and_changed(kind: str, folder: Path, embedder: Embedder) -> tuple[str, str, Any]:
    """Return two collections that differ: rows 1 and 5 changed, 3 and 99 on one side only.

    The first name is an alias in Qdrant, which a switch needs.
    """
    fill(kind, folder, range(20))
    id_of = int if kind == "qdrant" else str
    name = NAME
    with opened(kind, folder) as store:
        new = reindex(store, NAME, embedder).collection
        store.put(NAME, [row_with(store, id_of(1), "changed")], np.ones((1, OLD), np.float32))
        store.delete(NAME, [id_of(3)])
        own = [row_with(store, id_of(5), "edited"), row_with(store, id_of(99), "written")]
        store.put(new, own, np.ones((2, DIMENSIONS), np.float32))
        if kind == "qdrant":
            name = "in-use"
            alias = models.CreateAlias(collection_name=NAME, alias_name=name)
            operations = [models.CreateAliasOperation(create_alias=alias)]
            store.client.update_collection_aliases(operations)
        return name, new, rows_of(store, new)


@every_kind
def test_a_complete_collection_is_changed_only_by_an_update(
    kind: str, tmp_path: Path, embedder: Embedder
) -> None:
    name, new, before = completed_and_changed(kind, tmp_path, embedder)
    with opened(kind, tmp_path) as store:
        assert reindex(store, name, embedder).embedded == 0
        if kind != "lancedb":
            with pytest.raises(
                EmberdError,
                match="0 rows are only in 'passages', 2 rows differ, "
                f"and 2 rows are only in '{new}'.*--update",
            ):
                reindex(store, name, embedder, switch=True)
            assert store.resolve(name) == NAME
        assert rows_of(store, new) == before
        guarded(None, embedder, at=(store.client, new))
        summary = reindex(store, name, embedder, update=True)
        assert (summary.embedded, summary.removed) == (2, 2)
        assert rows_of(store, new) == rows_of(store, NAME)
        vectors = vectors_of(store, new)
        wanted = embedder.embed_documents(["changed", content(5)[0]])
        assert np.allclose([vectors["1"][0], vectors["5"][0]], wanted, atol=1e-5)
        if kind != "lancedb":
            assert reindex(store, name, embedder, switch=True).switched


@every_kind
def test_an_update_marks_the_collection_before_its_first_change(
    kind: str, tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, new, _ = completed_and_changed(kind, tmp_path, embedder)

    def fail_between(name: str, rows: list[Row], vectors: Any) -> None:
        store.delete(name, [row.id for row in rows])
        raise EmberdError("killed")

    with opened(kind, tmp_path) as store:
        with monkeypatch.context() as patched:
            patched.setattr(store, "put", fail_between)
            with pytest.raises(EmberdError, match="killed") as caught:
                reindex(store, name, embedder, update=True)
        assert caught.value.__notes__ == [RESUME_HINT]
        with pytest.raises(IdentityError, match="incomplete"):
            guarded(None, embedder, at=(store.client, new))
        reindex(store, name, embedder)
        assert rows_of(store, new) == rows_of(store, NAME)
        guarded(None, embedder, at=(store.client, new))


@every_kind
def test_an_update_without_differences_writes_nothing(
    kind: str, tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(kind, tmp_path, range(20))
    with opened(kind, tmp_path) as store:
        reindex(store, NAME, embedder)
        monkeypatch.setattr(places.Place, "write", None)
        assert reindex(store, NAME, embedder, update=True).embedded == 0


def renamed_before_the_switch(folder: Path, embedder: Embedder) -> tuple[str, str]:
    """Leave what a switch leaves that is killed between its two renames."""
    fill("chroma", folder, range(20))
    spare = f"{NAME}-before-{digest_of(embedder)}"
    with opened("chroma", folder) as store:
        new = reindex(store, NAME, embedder).collection
        store.client.get_collection(NAME).modify(name=spare)
    return new, spare


@pytest.mark.parametrize("is_recreated", [False, True])
def test_chroma_finishes_a_switch_that_was_interrupted(
    tmp_path: Path, embedder: Embedder, is_recreated: bool
) -> None:
    """Also if an application has created an empty collection with the name since."""
    _, spare = renamed_before_the_switch(tmp_path, embedder)
    other = embedder.replace(dimensions=64)
    with opened("chroma", tmp_path) as store:
        before = rows_of(store, spare)
        if is_recreated:
            metadata = {"emberd": embedder.identity}
            store.client.get_or_create_collection(NAME, metadata=metadata, embedding_function=None)
        with pytest.raises(SettingError, match="with --switch, which finishes"):
            reindex(store, NAME, embedder)
        with pytest.raises(SettingError, match="with other options was interrupted"):
            reindex(store, NAME, other)
        assert reindex(store, NAME, embedder, switch=True).switched
        assert rows_of(store, spare) == before
        assert reindex(store, NAME, embedder, switch=True).embedded == 0
    check("chroma", tmp_path, NAME, range(20), embedder)


@pytest.mark.parametrize("is_update", [False, True])
def test_chroma_changes_nothing_if_an_application_wrote_after_an_interrupted_switch(
    tmp_path: Path, embedder: Embedder, is_update: bool
) -> None:
    new, spare = renamed_before_the_switch(tmp_path, embedder)
    fill("chroma", tmp_path, range(100, 103))
    with opened("chroma", tmp_path) as store:
        before = {each: rows_of(store, each) for each in (NAME, new, spare)}
        with pytest.raises(SettingError, match=f"'{spare}' .20 rows.*'{NAME}' .3 rows"):
            reindex(store, NAME, embedder, update=is_update, switch=not is_update)
        assert {each: rows_of(store, each) for each in (NAME, new, spare)} == before
        store.client.get_collection(NAME).modify(name="written-since")
        assert reindex(store, NAME, embedder, switch=True).switched
    check("chroma", tmp_path, NAME, range(20), embedder)


def test_chroma_switches_again_and_refuses_a_name_that_is_taken_before_it_embeds(
    tmp_path: Path, embedder: Embedder
) -> None:
    fill("chroma", tmp_path, range(20))
    other = embedder.replace(dimensions=64)
    with opened("chroma", tmp_path) as store:
        for each in (embedder, other):
            assert reindex(store, NAME, each, switch=True).embedded == 20
        names = {each.name for each in store.client.list_collections()}
        assert names == {NAME, *(f"{NAME}-before-{digest_of(each)}" for each in (embedder, other))}
        with pytest.raises(SettingError, match="an earlier switch left it"):
            reindex(store, NAME, embedder, switch=True)
        assert {each.name for each in store.client.list_collections()} == names
    check("chroma", tmp_path, NAME, range(20), other)


def test_chroma_refuses_a_name_that_is_too_long_before_it_embeds(
    tmp_path: Path, embedder: Embedder
) -> None:
    name = "n" * 500
    fill("chroma", tmp_path, range(3), name)
    with opened("chroma", tmp_path) as store:
        with pytest.raises(SettingError, match="516 characters"):
            reindex(store, name, embedder, to="new-one", switch=True)
        assert not store.exists("new-one")


def test_a_server_of_qdrant_that_ignores_metadata_is_refused_and_left_as_it_was(
    tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill("qdrant", tmp_path, range(3))
    with opened("qdrant", tmp_path) as store:
        create = store.client.create_collection

        def create_without(*arguments: Any, metadata: Any, **more: Any) -> Any:
            assert metadata
            return create(*arguments, **more)

        monkeypatch.setattr(store.client, "create_collection", create_without)
        with pytest.raises(EmberdError, match="Update the store"):
            reindex(store, NAME, embedder, to="new-one")
        assert not store.exists("new-one")
        monkeypatch.setattr(store.client, "update_collection", lambda *_, **__: True)
        with pytest.raises(EmberdError, match="Update the store"):
            guarded(None, embedder, at=(store.client, NAME), adopt=True)


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


def lance_table(folder: Path, columns: dict[str, Any]) -> None:
    table = pyarrow.table(columns)
    lancedb.connect(folder).create_table(NAME, table)


def vectors_as(number_type: Any, rows: int) -> Any:
    zeros = pyarrow.array(np.zeros(rows * OLD, number_type.to_pandas_dtype()), number_type)
    return pyarrow.FixedSizeListArray.from_arrays(zeros, OLD)


@pytest.mark.parametrize(
    ("ids", "error", "said"),
    [
        (pyarrow.array(["a", None]), CollectionRowError, "id is NULL"),
        (pyarrow.array([b"a", b"b"]), SettingError, "type binary"),
        (pyarrow.array([1, 2], pyarrow.date32()), SettingError, "type date32"),
    ],
)
def test_ids_of_lancedb_that_cannot_be_searched_are_named(
    tmp_path: Path, embedder: Embedder, ids: Any, error: type[EmberdError], said: str
) -> None:
    texts = ["one", "two"]
    lance_table(tmp_path, {"id": ids, "text": texts, "vector": vectors_as(pyarrow.float32(), 2)})
    with opened("lancedb", tmp_path) as store, pytest.raises(error, match=said):
        reindex(store, NAME, embedder)


@pytest.mark.parametrize("number_type", [pyarrow.float16(), pyarrow.float64()])
def test_vectors_of_lancedb_keep_their_type(
    tmp_path: Path, embedder: Embedder, number_type: Any
) -> None:
    columns = {"id": [1, 2], "text": ["one", "two"], "vector": vectors_as(number_type, 2)}
    lance_table(tmp_path, columns)
    with opened("lancedb", tmp_path) as store:
        new = reindex(store, NAME, embedder).collection
        assert store.client.open_table(new).schema.field("vector").type.value_type == number_type
        vectors = vectors_of(store, new)
    wanted = embedder.embed_documents(["one", "two"])
    assert np.allclose([vectors["1"][0], vectors["2"][0]], wanted, atol=1e-3)


def test_vectors_of_integers_are_refused(tmp_path: Path, embedder: Embedder) -> None:
    columns = {"id": [1], "text": ["one"], "vector": vectors_as(pyarrow.uint8(), 1)}
    lance_table(tmp_path, columns)
    with opened("lancedb", tmp_path) as store, pytest.raises(SettingError, match="of uint8"):
        reindex(store, NAME, embedder)


def test_a_row_without_its_vector_is_embedded_before_the_collection_is_complete(
    tmp_path: Path, embedder: Embedder
) -> None:
    fill("lancedb", tmp_path, range(20))
    with opened("lancedb", tmp_path) as store:
        with pytest.raises(EmberdError, match="interrupted"):
            reindex(store, NAME, embedder, to="new-one", watch=interrupted_after(20))
        table = store.client.open_table("new-one")
        row = table.search().where("id = '7'").to_list()[0] | {"vector": None}
        table.delete("id = '7'")
        fields = {name: row[name] for name in table.schema.names}
        table.add(pyarrow.Table.from_pylist([fields], schema=table.schema))
        assert reindex(store, NAME, embedder, to="new-one").embedded == 1
    check("lancedb", tmp_path, "new-one", range(20), embedder)


@pytest.mark.parametrize("node", ["{damaged", "[]", '{"metadata": {"a": 1}, "text_template": "{"}'])
def test_a_node_that_cannot_be_read_is_named_with_its_row(
    tmp_path: Path, embedder: Embedder, node: str
) -> None:
    fill("qdrant", tmp_path, range(3))
    with opened("qdrant", tmp_path) as store:
        store.client.set_payload(NAME, {"_node_content": node}, points=[2])
        with pytest.raises(CollectionRowError, match="row 2 of") as caught:
            reindex(store, NAME, embedder)
        assert caught.value.row == 2
        assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("name", ["title", "metadata.title"])
@pytest.mark.parametrize("kind", ["qdrant", "lancedb"])
def test_texts_are_found_in_metadata(
    kind: str, tmp_path: Path, embedder: Embedder, name: str
) -> None:
    if kind == "qdrant":
        fill("qdrant", tmp_path, range(1))
    else:
        metadata = [{"title": "a title"}]
        vectors = vectors_as(pyarrow.float32(), 1)
        lance_table(tmp_path, {"id": ["0"], "metadata": metadata, "vector": vectors})
    with opened(kind, tmp_path) as store:
        if kind == "qdrant":
            store.client.set_payload(NAME, {"metadata": {"title": "a title"}}, points=[0])
        new = reindex(store, NAME, embedder, text_field=name).collection
        vectors = vectors_of(store, new)
    assert np.allclose(vectors["0"][0], embedder.embed_documents(["a title"])[0], atol=1e-5)


def test_lancedb_does_not_replace_the_identity_of_a_table_that_does_not_exist_yet(
    tmp_path: Path, embedder: Embedder
) -> None:
    fill("lancedb", tmp_path, range(3))
    with opened("lancedb", tmp_path) as store:
        guarded(None, embedder.replace(dimensions=64), at=(store.client, "new-one"))
        with pytest.raises(IdentityError):
            reindex(store, NAME, embedder, to="new-one")
        store.client.drop_table("emberd_identity_new-one")
        assert reindex(store, NAME, embedder, to="new-one").rows == 3


def test_a_table_of_lancedb_without_rows_that_was_begun_is_not_taken_for_a_new_one(
    tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill("lancedb", tmp_path, range(3))
    with opened("lancedb", tmp_path) as store:
        with pytest.raises(EmberdError, match="has no text"):
            reindex(store, NAME, embedder, to="new-one", text_field="missing")
        with pytest.raises(IdentityError, match="incomplete"):
            guarded(None, embedder, at=(store.client, "new-one"))

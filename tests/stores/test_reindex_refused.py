"""What ``emberd reindex`` refuses, and what it copies, so that no collection is mixed or misled."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest
from chromadb.api.models.Collection import Collection
from qdrant_client import models

from emberd import Embedder, EmberdError, IdentityError, SettingError, guarded
from emberd.stores import rows as rows_module
from emberd.stores.opening import open_store, shown
from emberd.stores.reindexing import reindex
from stores.reindexed import DIMENSIONS, NAME, OLD, fill, opened, row_with, rows_of, vectors_of

every_kind = pytest.mark.parametrize("kind", ["chroma", "qdrant", "lancedb"])


def interrupt(done: int, total: int) -> None:
    raise EmberdError("interrupted")


def fill_with_bodies(folder: Path) -> None:
    """Fill a collection of Qdrant whose rows have a text and a body."""
    fill("qdrant", folder, range(20))
    with opened("qdrant", folder) as store:
        store.client.set_payload(NAME, {"body": "the body"}, points=list(range(20)))


def test_one_collection_has_the_vectors_of_one_field(
    tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "PAGE_ROWS", 8)
    fill_with_bodies(tmp_path)
    with opened("qdrant", tmp_path) as store:
        with pytest.raises(EmberdError, match="interrupted"):
            reindex(store, NAME, embedder, to="new", text_field="body", watch=interrupt)
        for other in (None, "page_content"):
            with pytest.raises(SettingError, match="with --text-field body"):
                reindex(store, NAME, embedder, to="new", text_field=other)
        reindex(store, NAME, embedder, to="new", text_field="body")
        for is_update in (False, True):
            with pytest.raises(SettingError, match="with --text-field body"):
                reindex(store, NAME, embedder, to="new", update=is_update)
        guarded(None, embedder, at=(store.client, "new"))
        reindex(store, NAME, embedder, to="of-texts")
        with pytest.raises(SettingError, match="without --text-field"):
            reindex(store, NAME, embedder, to="of-texts", text_field="body", update=True)
        again = reindex(store, "new", embedder, text_field="page_content")
        assert (again.collection == "new", again.embedded) == (False, 20)
        vectors = [vector for (vector,) in vectors_of(store, "new").values()]
    assert np.allclose(vectors, embedder.embed_documents(["the body"])[0], atol=1e-5)


def test_a_collection_without_rows_may_be_continued_with_another_field(
    tmp_path: Path, embedder: Embedder
) -> None:
    fill_with_bodies(tmp_path)
    with opened("qdrant", tmp_path) as store:
        with pytest.raises(EmberdError, match="has no text"):
            reindex(store, NAME, embedder, to="new", text_field="missing")
        assert reindex(store, NAME, embedder, to="new", text_field="body").embedded == 20


@every_kind
def test_a_run_stops_when_another_has_completed_the_collection(
    kind: str, tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an application has written to it since is kept."""
    monkeypatch.setattr(rows_module, "PAGE_ROWS", 8)
    fill(kind, tmp_path, range(20))
    with opened(kind, tmp_path) as store:

        def complete(done: int, total: int) -> None:
            if done < total:
                return
            written = row_with(store, (int if kind == "qdrant" else str)(99), "written")
            store.put("new", [written], np.ones((1, DIMENSIONS), np.float32))
            store.place("new").write(embedder.identity)

        with pytest.raises(EmberdError, match="another run has completed it"):
            reindex(store, NAME, embedder, to="new", watch=complete)
        assert len(rows_of(store, "new")) == 21


def test_chroma_is_sent_few_rows_a_request(
    tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill("chroma", tmp_path, range(300))
    sizes = []
    add = Collection.add

    def noted(self: Collection, ids: Any, *arguments: Any, **more: Any) -> None:
        sizes.append(len(ids))
        add(self, ids, *arguments, **more)

    monkeypatch.setattr(Collection, "add", noted)
    with opened("chroma", tmp_path) as store:
        assert reindex(store, NAME, embedder).rows == 300
    assert (max(sizes), sum(sizes)) == (128, 300)


def test_the_identity_of_a_deleted_table_of_lancedb_is_not_taken_over(
    tmp_path: Path, embedder: Embedder
) -> None:
    fill("lancedb", tmp_path, range(3))
    with opened("lancedb", tmp_path) as store:
        reindex(store, NAME, embedder, to="new")
        store.client.drop_table("new")
        with pytest.raises(IdentityError, match="Delete the table emberd_identity_new"):
            reindex(store, NAME, embedder, to="new", connect=not_called)
        assert not store.exists("new")


def not_called() -> int:
    raise AssertionError


@every_kind
def test_other_errors_are_not_those_of_the_store(
    kind: str, tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Any:
        raise ZeroDivisionError

    fill(kind, tmp_path, range(3))
    with opened(kind, tmp_path) as store:
        with pytest.raises(ZeroDivisionError):
            reindex(store, NAME, embedder, connect=fail)
        with pytest.raises(ZeroDivisionError):
            reindex(store, NAME, embedder, watch=fail)
        with monkeypatch.context() as patched:
            patched.setattr(Embedder, "embed_documents", fail)
            with pytest.raises(ZeroDivisionError):
                reindex(store, NAME, embedder, to="new")
        monkeypatch.setattr(store, "put", fail)
        with pytest.raises(EmberdError, match="cannot be used: ZeroDivisionError"):
            reindex(store, NAME, embedder, to="new")


@every_kind
@pytest.mark.parametrize("name", ["with/slash", "n" * 600])
def test_a_name_that_is_not_allowed_is_refused_before_a_server_is_started(
    kind: str, tmp_path: Path, embedder: Embedder, name: str
) -> None:
    fill(kind, tmp_path, range(3))
    with opened(kind, tmp_path) as store, pytest.raises(SettingError, match="cannot be the name"):
        reindex(store, NAME, embedder, to=name, connect=not_called)


def test_chroma_names_the_rows_of_an_interrupted_switch_with_another_target(
    tmp_path: Path, embedder: Embedder
) -> None:
    fill("chroma", tmp_path, range(3))
    digest = hashlib.sha256(embedder.identity.encode()).hexdigest()[:8]
    with opened("chroma", tmp_path) as store:
        reindex(store, NAME, embedder, to="new")
        store.client.get_collection(NAME).modify(name=f"{NAME}-before-{digest}")
        store.client.create_collection(NAME, embedding_function=None)
        with pytest.raises(SettingError, match="with other options was interrupted"):
            reindex(store, NAME, embedder)
        assert reindex(store, NAME, embedder, to="new", switch=True).rows == 3


def test_qdrant_copies_the_settings_of_optimizers_and_the_strict_mode(
    tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill("qdrant", tmp_path, range(3))
    with opened("qdrant", tmp_path) as store:
        # The local mode does not keep them.
        found = store.client.get_collection(NAME)
        found.config.optimizer_config.indexing_threshold = 1234
        strict = models.StrictModeConfigOutput(enabled=True, max_query_limit=5)
        found.config.strict_mode_config = strict
        given: dict[str, Any] = {}
        create = store.client.create_collection
        monkeypatch.setattr(
            store.client,
            "create_collection",
            lambda *a, **more: (given.update(more), create(*a, **more)),
        )
        get = store.client.get_collection
        monkeypatch.setattr(
            store.client, "get_collection", lambda name: found if name == NAME else get(name)
        )
        reindex(store, NAME, embedder)
    assert given["optimizers_config"].indexing_threshold == 1234
    assert given["strict_mode_config"] == models.StrictModeConfig(enabled=True, max_query_limit=5)


def test_vectors_of_integers_of_qdrant_are_refused(tmp_path: Path, embedder: Embedder) -> None:
    fill("qdrant", tmp_path, range(1), "other")
    with opened("qdrant", tmp_path) as store:
        vectors = models.VectorParams(
            size=OLD, distance=models.Distance.COSINE, datatype=models.Datatype.UINT8
        )
        store.client.create_collection(NAME, vectors)
        with pytest.raises(SettingError, match="of uint8"):
            reindex(store, NAME, embedder, connect=not_called)


def test_the_secrets_of_a_location_are_not_shown() -> None:
    for location in ("qdrant:http://me:hidden@127.0.0.1:1/x", "http://me:hidden@127.0.0.1:1"):
        assert "127.0.0.1:1" in shown(location)
        assert "hidden" not in shown(location)
    assert shown("qdrant:folder") == "qdrant:folder"


@pytest.mark.parametrize("url", ["http://me@127.0.0.1:1", "http://127.0.0.1:1/chroma"])
def test_what_chroma_would_not_use_of_a_url_is_refused(url: str) -> None:
    with pytest.raises(SettingError, match="Pass only scheme, host and port"):
        open_store(f"chroma:{url}")


def test_lancedb_gets_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setenv("EMBERD_STORE_API_KEY", "a key")
    monkeypatch.setattr(lancedb, "connect", lambda _, **more: given.update(more))
    open_store("lancedb:db://database")
    assert given == {"api_key": "a key"}

"""``guarded``, on indexes in files and in SQLite; ``stores/test_guard.py`` has the others."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

import guard_race
from emberd import Embedder, EmberdError, IdentityError, SettingError, guarded, index_identity
from emberd.stores.rows import open_store
from langchain_emberd import EmberdEmbeddings
from llama_index.embeddings.emberd import EmberdEmbedding

MODEL: Final = "emberd/demo"
EMBEDDER: Final = Embedder(MODEL)
OTHER: Final = Embedder(MODEL, dimensions=64)


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(tmp_path / "vectors.db")) as made:
        yield made


@pytest.fixture(params=["folder", "file", "sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path, connection: sqlite3.Connection) -> Any:
    """An index that does not exist yet."""
    if request.param == "sqlite":
        return connection, "pas'sages"
    return tmp_path / ("index" if request.param == "folder" else "index.json")


def fill(place: Any) -> None:
    if isinstance(place, tuple):
        place[0].execute('CREATE TABLE "pas\'sages" (vector BLOB)')
        place[0].execute('INSERT INTO "pas\'sages" VALUES (1)')
    elif place.suffix:
        place.write_text("{}")
    else:
        place.mkdir(exist_ok=True)
        (place / "index.faiss").write_text("")


def test_a_new_index_gets_the_identity_and_is_opened_only_with_it(place: Any) -> None:
    store = object()
    assert guarded(store, EMBEDDER, at=place) is store
    fill(place)
    assert guarded(store, EMBEDDER, at=place) is store
    with pytest.raises(IdentityError) as caught:
        guarded(store, OTHER, at=place)
    assert (caught.value.kept.strip(), caught.value.now) == (EMBEDDER.identity, OTHER.identity)
    for part in ("pas'sages" if isinstance(place, tuple) else str(place), "dimensions 384 there"):
        assert part in str(caught.value).replace("\\", "")
    with pytest.raises(IdentityError):
        guarded(store, OTHER, at=place, adopt=True)


def test_an_index_with_rows_and_without_identity_is_refused_unless_it_is_adopted(
    place: Any,
) -> None:
    fill(place)
    for _ in range(2):
        with pytest.raises(IdentityError, match="adopt=True"):
            guarded(None, EMBEDDER, at=place)
    guarded(None, EMBEDDER, at=place, adopt=True)
    guarded(None, EMBEDDER, at=place)


def test_an_incomplete_index_is_refused(tmp_path: Path) -> None:
    kept = index_identity.incomplete(EMBEDDER.identity)
    (tmp_path / "emberd-identity.txt").write_text(kept)
    with pytest.raises(IdentityError, match="incomplete"):
        guarded(None, EMBEDDER, at=tmp_path)
    with pytest.raises(IdentityError, match="incomplete"):
        EMBEDDER.check_identity(kept)


def test_objects_of_both_frameworks_and_an_index_with_a_store_are_accepted(tmp_path: Path) -> None:
    index = SimpleNamespace(vector_store=SimpleNamespace())
    assert guarded(index, EmberdEmbeddings(model=MODEL), at=tmp_path / "index") is index
    assert guarded(index, EmberdEmbedding(model_name=MODEL), at=tmp_path / "index") is index
    with pytest.raises(SettingError, match="without other objects around it"):
        guarded(index, SimpleNamespace(embed_query=None), at=tmp_path / "index")


@pytest.mark.parametrize(
    "at", [None, 3, ("client", "name"), (object(), 3), (object(), "name", "more")]
)
def test_an_unknown_place_is_refused_with_what_to_pass(at: Any) -> None:
    with pytest.raises(SettingError, match="at=PATH"):
        guarded(SimpleNamespace(client=object(), collection_name="passages"), EMBEDDER, at=at)


def test_an_error_of_the_store_is_ours(connection: sqlite3.Connection) -> None:
    connection.close()
    with pytest.raises(EmberdError, match="ProgrammingError") as caught:
        guarded(None, EMBEDDER, at=(connection, "passages"))
    assert isinstance(caught.value.__cause__, sqlite3.ProgrammingError)


@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_of_two_processes_that_create_an_index_one_stores_its_identity(
    kind: str, tmp_path: Path
) -> None:
    assert guard_race.outcomes(kind, tmp_path) == [["refused", "stored"]] * guard_race.ROUNDS


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("missing", "missing is not a folder"),
        ("empty", "empty is not a folder"),
        ("chroma:qdrant", "chroma:qdrant is not a folder"),
        ("http://127.0.0.1:1", "qdrant:http://localhost:6333"),
        ("qdrant", "pip install qdrant-client"),
        ("chroma:http://127.0.0.1:1", "pip install chromadb"),
    ],
)
def test_a_store_that_cannot_be_embedded_again_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str, said: str
) -> None:
    for package in ("chromadb", "qdrant_client", "lancedb"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("qdrant").mkdir()
    Path("qdrant", "meta.json").write_text("{}")
    with pytest.raises(SettingError, match=said):
        open_store(location)
    assert len(list(tmp_path.rglob("*"))) == 3

"""``guarded``, on indexes in files and in SQLite; ``stores/test_guard.py`` has the others."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

import guard_race
import managed
from emberd import Embedder, EmberdError, IdentityError, SettingError, guarded, index_identity
from emberd.stores.opening import open_store
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
    """An index without rows: a table, or a path where there is nothing yet."""
    if request.param == "sqlite":
        connection.execute('CREATE TABLE "pas\'sages" (vector BLOB)')
        return connection, "pas'sages"
    return tmp_path / ("index" if request.param == "folder" else "index.json")


def empty(place: Any) -> None:
    """Remove what ``fill`` added."""
    if isinstance(place, tuple):
        place[0].execute('DELETE FROM "pas\'sages"')
    else:
        (place if place.suffix else place / "index.faiss").unlink()


def fill(place: Any) -> None:
    if isinstance(place, tuple):
        place[0].execute('INSERT INTO "pas\'sages" VALUES (1)')
    elif place.suffix:
        place.write_text("{}")
    else:
        place.mkdir(exist_ok=True)
        (place / "index.faiss").write_text("")


def test_an_index_is_opened_only_with_its_first_identity_however_full_it_is(place: Any) -> None:
    store = object()
    for change in (None, None, fill, empty, fill):
        if change is not None:
            change(place)
        assert guarded(store, EMBEDDER, at=place) is store
        for adopt in (False, True):
            with pytest.raises(IdentityError) as caught:
                guarded(store, OTHER, at=place, adopt=adopt)
    assert (caught.value.kept.strip(), caught.value.now) == (EMBEDDER.identity, OTHER.identity)
    for part in ("pas'sages" if isinstance(place, tuple) else str(place), "dimensions 384 there"):
        assert part in str(caught.value).replace("\\", "")


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
    with pytest.raises(IdentityError, match="incomplete.*delete.*emberd-identity.txt"):
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


def test_a_table_that_was_dropped_takes_its_identity_with_it(
    connection: sqlite3.Connection,
) -> None:
    for embedder in (EMBEDDER, OTHER):
        connection.execute("CREATE TABLE passages (vector BLOB)")
        guarded(None, embedder, at=(connection, "passages"))
        connection.execute("INSERT INTO passages VALUES (1)")
        connection.execute("UPDATE passages SET vector = 2")
        guarded(None, embedder, at=(connection, "passages"))
        connection.execute("ALTER TABLE passages RENAME TO renamed")
        guarded(None, embedder, at=(connection, "renamed"))
        connection.execute("DROP TABLE renamed")
    with pytest.raises(SettingError, match="does not exist yet"):
        guarded(None, OTHER, at=(connection, "passages"))


def test_a_virtual_table_is_refused_with_what_to_pass(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE VIRTUAL TABLE passages USING fts5(vector)")
    with pytest.raises(SettingError, match="virtual"):
        guarded(None, EMBEDDER, at=(connection, "passages"))


def test_a_name_of_a_table_can_be_used_again_after_the_table_was_renamed(
    connection: sqlite3.Connection,
) -> None:
    for name, embedder in (("first", EMBEDDER), ("second", OTHER)):
        connection.execute("CREATE TABLE passages (vector BLOB)")
        guarded(None, embedder, at=(connection, "passages"))
        connection.execute(f"ALTER TABLE passages RENAME TO {name}")
    guarded(None, EMBEDDER, at=(connection, "first"))
    guarded(None, OTHER, at=(connection, "second"))


def test_a_transaction_of_the_user_is_left_open(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE passages (vector BLOB)")
    connection.execute("INSERT INTO passages VALUES (1)")
    guarded(None, EMBEDDER, at=(connection, "passages"), adopt=True)
    assert connection.in_transaction
    connection.commit()
    with pytest.raises(SettingError, match="does not exist yet"):
        guarded(None, EMBEDDER, at=(connection, "missing"))
    assert not connection.in_transaction
    with pytest.raises(IdentityError):
        guarded(None, OTHER, at=(connection, "passages"))


@pytest.mark.parametrize("name", ["index", "index.json"])
def test_the_error_names_what_to_delete_if_an_index_was_deleted_without_its_identity(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    guarded(None, EMBEDDER, at=path)
    fill(path)
    (shutil.rmtree if path.is_dir() else Path.unlink)(path)
    (left,) = tmp_path.glob("*identity*")
    with pytest.raises(IdentityError, match=f"If the index.*was deleted, delete .*{left}"):
        guarded(None, OTHER, at=path)
    left.unlink()
    guarded(None, OTHER, at=path)


_MANY: Final = """
import os, resource, sys
from emberd import Embedder, guarded
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
embedder = Embedder("emberd/demo")
for number in range(300):
    path = f"{sys.argv[1]}/{number}"
    guarded(None, embedder, at=path)
    os.mkdir(path)
    guarded(None, embedder, at=path)
"""


def test_300_indexes_need_no_more_descriptors_than_one(tmp_path: Path) -> None:
    environment = managed.environment(PYTHONWARNINGS="ignore")
    subprocess.run([sys.executable, "-c", _MANY, tmp_path], env=environment, check=True)


@pytest.mark.parametrize(
    ("name", "is_folder"),
    [("index.v2", True), ("index", True), ("store", False), ("store.json", False)],
)
def test_an_identity_counts_whatever_is_made_at_the_path_afterwards(
    tmp_path: Path, name: str, is_folder: bool
) -> None:
    path = tmp_path / name
    guarded(None, EMBEDDER.replace(dimensions=128), at=path)
    if is_folder:
        path.mkdir()
        (path / "index.faiss").write_text("")
    else:
        path.write_text("{}")
    with pytest.raises(IdentityError, match="dimensions 128 there, 64 here"):
        guarded(None, OTHER, at=path)
    with pytest.raises(IdentityError, match="dimensions 128 there, 64 here"):
        guarded(None, OTHER, at=path, adopt=True)
    guarded(None, EMBEDDER.replace(dimensions=128), at=path)


def test_a_folder_that_is_copied_keeps_its_identity(tmp_path: Path) -> None:
    fill(tmp_path / "index")
    guarded(None, EMBEDDER, at=tmp_path / "index", adopt=True)
    shutil.copytree(tmp_path / "index", tmp_path / "copy")
    guarded(None, EMBEDDER, at=tmp_path / "copy")


def test_a_store_that_embeds_with_another_object_is_refused(tmp_path: Path) -> None:
    store = SimpleNamespace(embeddings=EmberdEmbeddings(model=MODEL, dimensions=64))
    with pytest.raises(IdentityError, match="The store embeds with.*dimensions 64 there, 384 here"):
        guarded(store, EMBEDDER, at=tmp_path / "index")
    assert guarded(store, OTHER, at=tmp_path / "index") is store


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

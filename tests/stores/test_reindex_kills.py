"""``emberd reindex`` as a command: killed at random moments, and what it says.

``REINDEX_SCALE=full`` runs all kills, otherwise a small part. ``-s`` shows the seeds and the
numbers of kills; ``REINDEX_SEED`` repeats a seed.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from qdrant_client import models

import managed
from command import Command
from emberd import Embedder, IdentityError, guarded
from emberd.stores.rows import Row, RowStore
from fake_server import QWEN, FakeServer
from stores.reindexed import (
    DIMENSIONS,
    NAME,
    OLD,
    fill,
    opened,
    row_with,
    rows_of,
    text_of,
    vectors_of,
)
from waiting import until

KINDS: Final = ("chroma", "qdrant", "lancedb")
FULL: Final = os.environ.get("REINDEX_SCALE") == "full"
ROWS: Final = 2000 if FULL else 400
FEW_ROWS: Final = 200
KILLS: Final = 20 if FULL else 2
NEW: Final = "new-one"
ALIAS: Final = "in-use"

# Pages of few rows, so that a kill has many moments to choose from. KILL_WRITE=N kills the process
# before its Nth call that writes to the store; the number of calls is shown at the end.
_PROGRAM: Final = """
import atexit, importlib, os, signal, sys
from emberd.stores import rows
rows.PAGE_ROWS = 32
WRITES = {
    "chroma": [
        ("chromadb.api.models.Collection", "Collection", ["modify", "add", "delete"]),
        ("chromadb.api.client", "Client", ["create_collection", "delete_collection"]),
    ],
    "qdrant": [("qdrant_client", "QdrantClient", [
        "upsert", "delete", "create_collection", "update_collection", "update_collection_aliases",
    ])],
    "lancedb": [
        ("lancedb.table", "LanceTable", ["add", "delete", "optimize"]),
        ("lancedb.db", "LanceDBConnection", ["create_table"]),
    ],
}
last, calls = int(os.environ.get("KILL_WRITE", 0)), 0
def counted(inner):
    def call(*arguments, **more):
        global calls
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(*arguments, **more)
    return call
for module, owner, names in WRITES[sys.argv[2].partition(":")[0]]:
    owner = getattr(importlib.import_module(module), owner)
    for name in names:
        setattr(owner, name, counted(getattr(owner, name)))
atexit.register(lambda: print(f"writes: {calls}", file=sys.stderr))
from emberd.cli import main
sys.exit(main())
"""


@pytest.fixture
def environment(server: FakeServer) -> dict[str, str]:
    return managed.environment(EMBERD_BASE_URL=server.url, EMBERD_MODEL=QWEN)


class Runs:
    """Runs of the command on a folder, killed or not."""

    def __init__(self, kind: str, environment: dict[str, str], *options: str) -> None:
        seed = int(os.environ.get("REINDEX_SEED") or random.SystemRandom().randrange(10**6))
        print(f"REINDEX_SEED={seed} ({kind})")
        self.chosen = random.Random(f"{seed} {kind}")
        self.kind = kind
        self.kills = 0
        self._environment = environment
        self._options = options

    def begin(self, folder: Path, *options: str, write: int = 0) -> subprocess.Popen[bytes]:
        line = ["reindex", f"{self.kind}:{folder}", *(self._options + options)]
        more = ["--dimensions", str(DIMENSIONS)]
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *line, *more],
            env={**self._environment, "KILL_WRITE": str(write)},
            stderr=subprocess.PIPE,
        )

    def complete(self, folder: Path, *options: str) -> int:
        """Let a run end by itself, and return how often it wrote."""
        with self.begin(folder, *options) as process:
            _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
        found = re.search(rb"writes: (\d+)", errors)
        assert found is not None
        return int(found[1])

    def kill(self, process: subprocess.Popen[bytes], is_time: Callable[[], bool]) -> bool:
        """Kill the process when it is time; return False if it ended by itself before that."""
        with process:
            until(lambda: is_time() or process.poll() is not None, 120)
            process.kill()
            assert process.stderr is not None
            errors = process.stderr.read().decode()
        assert process.returncode in (0, -9), errors
        self.kills += process.returncode == -9
        return process.returncode == -9

    def kill_somewhere(self, folder: Path, *options: str, writes: int, whole_s: float) -> bool:
        """Kill a run before a random write, or at a random time of its second half."""
        if self.chosen.random() < 0.5:
            number = self.chosen.randint(1, writes)
            return self.kill(self.begin(folder, *options, write=number), lambda: False)
        process = self.begin(folder, *options)
        time.sleep(self.chosen.uniform(0.5, 1) * whole_s)  # any moment is meant
        return self.kill(process, lambda: True)


def check(kind: str, folder: Path, embedder: Embedder, new: str = NEW, old: str = NAME) -> None:
    """Assert that the new collection has the rows of the old one, each once, with its vector."""
    with opened(kind, folder) as store:
        assert store.place(new).read() == embedder.identity
        assert rows_of(store, new) == rows_of(store, old)
        assert store.count(new) == store.count(old)
        check_vectors(store, new, embedder)


def check_vectors(store: RowStore, name: str, embedder: Embedder) -> None:
    """Assert that each row has one vector: that of its text."""
    texts = {
        str(each): text_of(store, row)
        for ids in store.id_pages(name)
        for each, (row,) in store.rows(name, ids).items()
    }
    vectors = vectors_of(store, name)
    assert {each: len(found) for each, found in vectors.items()} == dict.fromkeys(texts, 1)
    if texts:
        wanted = embedder.embed_documents(list(texts.values()))
        assert np.allclose([vectors[each][0] for each in texts], wanted, atol=1e-5)


def check_between(kind: str, folder: Path, embedder: Embedder, before: Any) -> None:
    """Assert that a killed run left the old rows, and no complete collection that is not whole."""
    with opened(kind, folder) as store:
        assert rows_of(store, NAME) == before
        if not store.exists(NEW):
            return
        check_vectors(store, NEW, embedder)
        if rows_of(store, NEW) != before:
            with pytest.raises(IdentityError, match="incomplete"):
                guarded(None, embedder, at=(store.client, NEW))


def contents(kind: str, folder: Path, name: str = NAME) -> Any:
    with opened(kind, folder) as store:
        return rows_of(store, name)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_killed_again_and_again_ends_with_all_rows(
    kind: str,
    tmp_path: Path,
    server: FakeServer,
    environment: dict[str, str],
    embedder: Embedder,
) -> None:
    runs = Runs(kind, environment, NAME, "--to", NEW)
    fill(kind, tmp_path / "0", range(ROWS))
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    folder, before = tmp_path / "1", contents(kind, tmp_path / "0")
    for number in range(2, 3 * KILLS):
        least = len(server.embedded) + runs.chosen.randrange(4)
        delay_s = runs.chosen.uniform(0, 0.15)

        def is_time(least: int = least, delay_s: float = delay_s) -> bool:
            if len(server.embedded) <= least:
                return False
            time.sleep(delay_s)
            return True

        if not runs.kill(runs.begin(folder), is_time):
            # It was completed by many killed runs: another collection is begun.
            check(kind, folder, embedder)
            folder = tmp_path / str(number)
            shutil.copytree(tmp_path / "0", folder)
            continue
        check_between(kind, folder, embedder, before)
        if runs.kills == KILLS:
            break
    print(f"{runs.kills} kills")
    assert runs.kills == KILLS
    runs.complete(folder)
    check(kind, folder, embedder)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_at_any_moment_of_a_short_run_leaves_what_the_next_run_completes(
    kind: str, tmp_path: Path, environment: dict[str, str], embedder: Embedder
) -> None:
    """Also while the collection is created, marked as complete, or the store is opened."""
    runs = Runs(kind, environment, NAME, "--to", NEW)
    fill(kind, tmp_path / "0", range(FEW_ROWS))
    before = contents(kind, tmp_path / "0")

    def between(folder: Path) -> None:
        check_between(kind, folder, embedder, before)

    def finish(folder: Path) -> None:
        runs.complete(folder)
        check(kind, folder, embedder)

    killed_everywhere(runs, tmp_path, between, finish)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_during_an_update_leaves_what_the_next_run_completes(
    kind: str, tmp_path: Path, environment: dict[str, str], embedder: Embedder
) -> None:
    runs = Runs(kind, environment, NAME, "--to", NEW)
    fill(kind, tmp_path / "0", range(FEW_ROWS))
    runs.complete(tmp_path / "0")
    id_of = int if kind == "qdrant" else str
    with opened(kind, tmp_path / "0") as store:
        unchanged = rows_of(store, NEW)
        edited = [row_with(store, id_of(number), f"edited {number}") for number in range(0, 200, 3)]
        added = [row_with(store, id_of(number), f"added {number}") for number in range(200, 240)]
        write(store, NAME, [*edited, *added], np.ones((len(edited) + len(added), OLD)))
        store.delete(NAME, [id_of(number) for number in range(1, 200, 9)])
        before = rows_of(store, NAME)

    def between(folder: Path) -> None:
        with opened(kind, folder) as store:
            is_untouched = rows_of(store, NEW) == unchanged
            if is_untouched:
                check_vectors(store, NEW, embedder)
        if not is_untouched:
            check_between(kind, folder, embedder, before)

    def finish(folder: Path) -> None:
        with opened(kind, folder) as store:
            is_begun = store.place(NEW).read() != embedder.identity
        # What an update began is continued without --update too.
        runs.complete(folder, *([] if is_begun and runs.chosen.random() < 0.5 else ["--update"]))
        check(kind, folder, embedder)

    killed_everywhere(runs, tmp_path, between, finish, "--update")


def write(store: RowStore, name: str, rows: list[Row], vectors: Any) -> None:
    for begin in range(0, len(rows), 32):
        store.put(name, rows[begin : begin + 32], vectors[begin : begin + 32].astype(np.float32))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["chroma", "qdrant"])
def test_a_kill_during_a_switch_leaves_what_the_next_run_completes(
    kind: str, tmp_path: Path, environment: dict[str, str], embedder: Embedder
) -> None:
    name = NAME if kind == "chroma" else ALIAS
    runs = Runs(kind, environment, name, "--to", NEW)
    fill(kind, tmp_path / "0", range(FEW_ROWS))
    with opened(kind, tmp_path / "0") as store:
        before = rows_of(store, NAME)
        if kind == "qdrant":
            alias = models.CreateAlias(collection_name=NAME, alias_name=ALIAS)
            store.client.update_collection_aliases(
                [models.CreateAliasOperation(create_alias=alias)]
            )
    runs.complete(tmp_path / "0")
    digest = hashlib.sha256(embedder.identity.encode()).hexdigest()[:8]
    spare = f"{NAME}-before-{digest}" if kind == "chroma" else NAME

    def between(folder: Path) -> None:
        with opened(kind, folder) as store:
            places = [each for each in (NAME, spare) if store.exists(each)]
            old = [each for each in places if store.place(each).read() is None]
            assert [rows_of(store, each) for each in dict.fromkeys(old)] == [before]
            new = NEW if store.exists(NEW) else NAME
            assert rows_of(store, new) == before
            check_vectors(store, new, embedder)
            if kind == "chroma" and not store.exists(NAME):
                # What an application does that does not know of the switch.
                store.client.get_or_create_collection(NAME, embedding_function=None)
                print("between the two renames")

    def finish(folder: Path) -> None:
        runs.complete(folder, "--switch")
        check(kind, folder, embedder, new=NAME if kind == "chroma" else ALIAS, old=spare)

    killed_everywhere(runs, tmp_path, between, finish, "--switch")


def killed_everywhere(
    runs: Runs,
    folder: Path,
    check_after_kill: Callable[[Path], object],
    finish: Callable[[Path], object],
    *options: str,
) -> None:
    """Kill runs on copies of the folder ``0``, check what each left, and finish it."""
    shutil.copytree(folder / "0", folder / "whole")
    begin_s = time.monotonic()
    writes = runs.complete(folder / "whole", *options)
    whole_s = time.monotonic() - begin_s
    for number in range(1, 4 * KILLS):
        copy = folder / str(number)
        shutil.copytree(folder / "0", copy)
        if runs.kill_somewhere(copy, *options, writes=writes, whole_s=whole_s):
            check_after_kill(copy)
            finish(copy)
        shutil.rmtree(copy)
        if runs.kills == KILLS:
            break
    print(f"{runs.kills} kills")
    assert runs.kills == KILLS


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_says_what_it_did_and_what_is_next(
    kind: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    command = Command(Path(environment["EMBERD_HOME"]), environment)
    fill(kind, tmp_path, range(5))
    line = ("reindex", str(tmp_path), NAME, "--dimensions", "32")
    made = command(*line, "--json")
    assert made.code == 0, made.err
    summary = made.json
    assert (summary["rows"], summary["embedded"], summary["switched"]) == (5, 5, False)
    assert summary["collection"] in made.err
    switched = command(*line, "--switch")
    assert (switched.code == 0) is (kind == "chroma"), switched.err
    strict = command("reindex", str(tmp_path), NAME, "--dimensions", "64", "--deterministic")
    assert (strict.code == 0, "deterministic" in strict.err) == (False, True), strict.err
    missing = command("reindex", str(tmp_path), "missing")
    assert (missing.code, "no collection 'missing'" in missing.err) == (2, True)


def test_a_store_that_is_not_there_is_named(tmp_path: Path, environment: dict[str, str]) -> None:
    command = Command(Path(environment["EMBERD_HOME"]), environment)
    for location in (str(tmp_path / "none"), str(tmp_path), "http://127.0.0.1:1"):
        refused = command("reindex", location, NAME)
        assert (refused.code, location in refused.err) == (2, True), refused.err
    for kind in ("qdrant", "chroma"):
        refused = command("reindex", f"{kind}:http://127.0.0.1:1", NAME)
        assert (refused.code, "cannot be used" in refused.err) == (1, True), refused.err
        assert "to continue" not in refused.err

"""``emberd reindex`` as a command: killed at random moments, and what it says.

``-s`` shows the seed; ``REINDEX_SEED`` repeats it.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pytest

import managed
from command import Command
from emberd import Embedder
from fake_server import QWEN, FakeServer
from stores.reindexed import NAME, content, fill, opened, rows_of, vectors_of
from waiting import until

KINDS: Final = ("chroma", "qdrant", "lancedb")
DIMENSIONS: Final = 32
ROWS: Final = 2000
FEW_ROWS: Final = 64
KILLS: Final = 20
SHORT_RUNS: Final = 6
NEW: Final = "new-one"

# Pages of few rows, so that a kill has many moments to choose from.
_PROGRAM: Final = """
import sys
from emberd.stores import rows
rows.PAGE_ROWS = 32
from emberd.cli import main
sys.exit(main())
"""


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer(model=QWEN, dimensions=1024) as found:
        yield found


@pytest.fixture
def environment(server: FakeServer) -> dict[str, str]:
    return managed.environment(EMBERD_BASE_URL=server.url, EMBERD_MODEL=QWEN)


def begin(kind: str, folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    arguments = ["reindex", f"{kind}:{folder}", NAME, "--to", NEW]
    more = ["--dimensions", str(DIMENSIONS)]
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *arguments, *more], env=environment, stderr=subprocess.PIPE
    )


def completed(kind: str, folder: Path, environment: dict[str, str]) -> None:
    with begin(kind, folder, environment) as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()


def check(kind: str, folder: Path, numbers: range, server: FakeServer) -> None:
    """Assert that the new collection has the rows of the old one, each once, with its vector."""
    embedder = Embedder(QWEN, base_url=server.url, dimensions=DIMENSIONS)
    with opened(kind, folder) as store:
        assert store.count(NEW) == len(numbers)
        assert rows_of(store, NEW) == rows_of(store, NAME)
        vectors = vectors_of(store, NEW)
        assert store.place(NEW).read() == embedder.identity
    found = np.array([vectors[str(number)][0] for number in numbers])
    wanted = embedder.embed_documents([content(number)[0] for number in numbers])
    assert np.allclose(found, wanted, atol=1e-5)


def seeded(kind: str) -> random.Random:
    seed = int(os.environ.get("REINDEX_SEED") or random.SystemRandom().randrange(10**6))
    print(f"REINDEX_SEED={seed} ({kind})")
    return random.Random(f"{seed} {kind}")


def killed_after(process: subprocess.Popen[bytes], is_time: Callable[[], bool]) -> bool:
    """Kill the process when it is time; return False if it ended by itself before that."""
    with process:
        until(lambda: is_time() or process.poll() is not None, 120)
        process.kill()
        assert process.stderr is not None
        errors = process.stderr.read().decode()
    assert process.returncode in (0, -9), errors
    return process.returncode == -9


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_killed_again_and_again_ends_with_all_rows(
    kind: str, tmp_path: Path, server: FakeServer, environment: dict[str, str]
) -> None:
    chosen = seeded(kind)
    fill(kind, tmp_path, range(ROWS))
    kills = 0
    for _ in range(KILLS):
        before, wanted = len(server.embedded), chosen.randrange(4)
        delay_s = chosen.uniform(0, 0.15)
        process = begin(kind, tmp_path, environment)

        def is_time(least: int = before + wanted, delay_s: float = delay_s) -> bool:
            if len(server.embedded) <= least:
                return False
            time.sleep(delay_s)
            return True

        kills += killed_after(process, is_time)
    print(f"{kills} kills")
    assert kills >= KILLS // 2
    completed(kind, tmp_path, environment)
    check(kind, tmp_path, range(ROWS), server)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_at_any_moment_of_a_short_run_leaves_what_the_next_run_completes(
    kind: str, tmp_path: Path, server: FakeServer, environment: dict[str, str]
) -> None:
    """Also while the collection is created, marked as complete, or the store is opened."""
    chosen = seeded(kind)
    fill(kind, tmp_path / "first", range(FEW_ROWS))
    begin_s = time.monotonic()
    completed(kind, tmp_path / "first", environment)
    whole_s = time.monotonic() - begin_s
    kills = 0
    for number in range(SHORT_RUNS):
        folder = tmp_path / str(number)
        fill(kind, folder, range(FEW_ROWS))
        process = begin(kind, folder, environment)
        time.sleep(chosen.uniform(0.6, 1) * whole_s)  # any moment is meant, so none is waited for
        kills += killed_after(process, lambda: True)
        completed(kind, folder, environment)
        check(kind, folder, range(FEW_ROWS), server)
    print(f"{kills} kills")


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

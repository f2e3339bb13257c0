"""Other processes that guard indexes: two for the same new ones at the same moments, or one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import managed

ROUNDS: Final = 10

_PROGRAM: Final = """
import importlib, os, sqlite3, sys
from emberd import Embedder, IdentityError, guarded

kind, folder, dimensions, rounds = sys.argv[1:]
embedder = Embedder("emberd/demo", dimensions=int(dimensions))
def place(number):
    if kind == "file":
        return f"{folder}/index-{number}"
    if kind == "sqlite":
        connection = sqlite3.connect(f"{folder}/vectors.db", timeout=60)
        connection.execute(f'CREATE TABLE IF NOT EXISTS "index-{number}" (vector BLOB)')
        return connection, f"index-{number}"
    package = importlib.import_module(kind)
    client = package.connect(folder) if kind == "lancedb" else package.PersistentClient(folder)
    return client, f"index-{number}"
for number in range(int(rounds)):
    at = place(number)
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        guarded(None, embedder, at=at)
        print("stored", flush=True)
    except IdentityError as error:
        print("refused", flush=True)
"""


def outcomes(kind: str, folder: Path) -> list[list[str]]:
    """Return what both processes report, sorted, for each index."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, kind, str(folder), dimensions, str(ROUNDS)],
            env=managed.environment(PYTHONWARNINGS="ignore"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for dimensions in ("64", "128")
    ]
    found = []
    for _ in range(ROUNDS):
        assert [_line(each) for each in processes] == ["ready", "ready"]
        for each in processes:
            assert each.stdin is not None
            each.stdin.write("\n")
            each.stdin.flush()
        found.append(sorted(_line(each) for each in processes))
    for each in processes:
        each.communicate()
        assert each.returncode == 0
    return found


_CLAIM: Final = """
import importlib, sys
from emberd import Embedder, IdentityError, guarded

kind, folder, name, dimensions = sys.argv[1:]
at = f"{folder}/{name}"
if kind != "file":
    at = importlib.import_module(kind).connect(folder), name
try:
    guarded(None, Embedder("emberd/demo", dimensions=int(dimensions)), at=at)
    print("stored", flush=True)
except IdentityError as error:
    print("refused", flush=True)
sys.stdin.readline()
"""


@contextmanager
def claiming(kind: str, folder: Path, name: str, dimensions: int = 128) -> Iterator[str]:
    """Let another process guard an index; yield its result, and end it after the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", _CLAIM, kind, str(folder), name, str(dimensions)],
        env=managed.environment(PYTHONWARNINGS="ignore"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield _line(process)
    finally:
        process.communicate()
    assert process.returncode == 0


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()

"""Two processes that guard the same new indexes at the same moments."""

from __future__ import annotations

import subprocess
import sys
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


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()

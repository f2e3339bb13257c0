"""Redis and Elasticsearch as vector stores (``make test-search-stores``)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from adapters.conftest import sent
from managed import stopped_at_the_end
from search_stores.search_servers import elasticsearch_running, redis_running

__all__ = ["sent", "stopped_at_the_end"]

# Each is another package's, and reported where no one can act on it.
_FOREIGN = (
    "ignore:.*:DeprecationWarning:(redisvl|langchain_redis|llama_index).*",
    "ignore:.*from Elasticsearch",
)
# Ours, and true: what is tried here is lengths, not how well they do.
_OURS = r"ignore:dimensions=\d+.* was not trained:UserWarning"


def pytest_configure(config: pytest.Config) -> None:
    """Let these warnings pass; some come while a module is imported."""
    for line in (*_FOREIGN, _OURS):
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Redis with vector search."""
    with redis_running(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(scope="session")
def elasticsearch_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of what stands in for Elasticsearch."""
    with elasticsearch_running(tmp_path_factory.mktemp("elasticsearch")) as url:
        yield url

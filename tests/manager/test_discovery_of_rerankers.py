"""Discovery tells servers of embeddings and of rerankers apart, whatever they are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from emberd.catalog import EMBED, RERANK
from emberd.client.verify import verify
from emberd.manager import discovery
from emberd.settings import ServerSpec
from fake_reranker import FakeReranker
from fake_server import FakeServer

NAME = "test/of-both-tasks"

Search = Callable[[str], str | None]


@pytest.fixture
def servers() -> Iterator[dict[str, FakeServer]]:
    """A server of each task, for a model of one name."""
    with ExitStack() as stack:
        found = {EMBED: FakeServer(model=NAME), RERANK: FakeReranker(model=NAME)}
        for server in found.values():
            stack.enter_context(server)
        yield found


@pytest.mark.parametrize("task", [EMBED, RERANK])
@pytest.mark.parametrize("order", [1, -1])
def test_the_server_of_the_wanted_task_is_found(
    servers: dict[str, FakeServer], task: str, order: int
) -> None:
    listed = tuple(server.url for server in servers.values())[::order]
    found, refusals = discovery.search(ServerSpec(NAME, task=task), listed, None, verify)
    assert found is not None, refusals
    assert found.endpoint.url == servers[task].url
    assert bool(found.endpoint.labels) == (task == RERANK)


@pytest.mark.parametrize(("task", "other"), [(EMBED, RERANK), (RERANK, EMBED)])
def test_a_server_of_the_other_task_is_refused_with_a_reason(
    servers: dict[str, FakeServer], task: str, other: str
) -> None:
    spec = ServerSpec(NAME, task=task)
    found, refusals = discovery.search(spec, (servers[other].url,), None, verify)
    assert found is None
    assert any(refusal.startswith(servers[other].url) for refusal in refusals)

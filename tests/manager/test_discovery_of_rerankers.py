"""Discovery tells servers of embeddings and of rerankers apart, whatever they are called."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from emberd.catalog import EMBED, RERANK
from emberd.client.verify import verify
from emberd.manager import discovery
from emberd.settings import ServerSpec
from fake_reranker import FakeReranker
from fake_server import FakeServer
from http_server import Request

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


@pytest.mark.parametrize("task", [EMBED, RERANK])
def test_a_key_is_not_sent_to_a_listed_server_of_another_model(
    servers: dict[str, FakeServer], task: str
) -> None:
    """What the other server serves is seen without a key."""
    wanted = servers.pop(task)
    (other,) = servers.values()
    wanted.api_key, other.model = "made-up", "test/other"
    listed = (other.url, wanted.url)
    found, refusals = discovery.search(ServerSpec(NAME, task=task), listed, "made-up", verify)
    assert found is not None, refusals
    assert (found.endpoint.url, found.endpoint.api_key) == (wanted.url, "made-up")
    assert {request.headers.get("authorization") for request in other.requests} == {None}


@pytest.mark.parametrize("kind", [FakeServer, FakeReranker])
def test_a_listed_server_whose_list_of_models_is_open_gets_the_key_it_requires(
    kind: type[FakeServer],
) -> None:
    class Open(kind):  # type: ignore[misc, valid-type]
        def _respond(self, request: Request, connection: socket.socket) -> bytes:
            is_open = request.path == "/v1/models"
            given: bytes = (self._models if is_open else super()._respond)(request, connection)
            return given

    task = RERANK if kind is FakeReranker else EMBED
    with Open(model=NAME, api_key="made-up") as server:
        spec = ServerSpec(NAME, task=task)
        found, refusals = discovery.search(spec, (server.url,), "made-up", verify)
        assert found is not None, refusals
        assert found.endpoint.api_key == "made-up"


@pytest.mark.parametrize(("task", "other"), [(EMBED, RERANK), (RERANK, EMBED)])
def test_a_server_of_the_other_task_is_refused_with_a_reason(
    servers: dict[str, FakeServer], task: str, other: str
) -> None:
    spec = ServerSpec(NAME, task=task)
    found, refusals = discovery.search(spec, (servers[other].url,), None, verify)
    assert found is None
    assert any(refusal.startswith(servers[other].url) for refusal in refusals)

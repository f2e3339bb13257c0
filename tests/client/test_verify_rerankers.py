"""Which servers a reranker refuses, and what it says of its key."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from emberd.catalog import EMBED, RERANK
from emberd.client.verify import verify
from emberd.errors import AuthenticationError, ServerMismatchError
from emberd.settings import ServerSpec
from fake_reranker import MODEL, FakeReranker
from fake_server import FakeServer
from http_server import Request, models, reply

ADAPTER = "test/adapter"


class _Lists(FakeReranker):
    """Lists another model after its own, as SGLang does for an adapter."""

    listed: dict[str, Any]

    def _models(self, request: Request, connection: socket.socket) -> bytes:
        found = models(self.model, self.context_tokens)
        own = found["data"][0]
        return reply(200, {**found, "data": [own, {**own, **self.listed}]})


@pytest.mark.parametrize(
    "listed", [{"id": ADAPTER, "parent": MODEL}, {"id": f"{MODEL}:adapter", "parent": None}]
)
def test_an_adapter_is_refused_because_scores_are_computed_without_it(
    listed: dict[str, Any],
) -> None:
    with _Lists() as server:
        server.listed = listed
        with pytest.raises(ServerMismatchError, match="adapter"):
            verify(server.url, None, ServerSpec(listed["id"], task=RERANK))
        assert server.scored == []
        assert verify(server.url, None, ServerSpec(MODEL, task=RERANK)).model == MODEL


def test_another_model_that_is_no_adapter_is_used() -> None:
    with _Lists() as server:
        server.listed = {"id": ADAPTER, "parent": None}
        assert verify(server.url, None, ServerSpec(ADAPTER, task=RERANK)).model == ADAPTER


@pytest.mark.parametrize(
    ("kind", "task", "variable"),
    [(FakeServer, EMBED, "EMBERD_API_KEY"), (FakeReranker, RERANK, "EMBERD_RERANK_API_KEY")],
)
def test_a_missing_key_names_the_variable_that_is_read(
    kind: type[FakeServer], task: str, variable: str
) -> None:
    with kind(model="test/model", api_key="right") as server:
        with pytest.raises(AuthenticationError, match=rf"\b{variable}\b"):
            verify(server.url, None, ServerSpec("test/model", task=task))

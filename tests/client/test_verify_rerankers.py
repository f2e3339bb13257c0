"""Which servers a reranker refuses, and what it says of its key."""

from __future__ import annotations

import socket
from collections.abc import Generator
from functools import partial
from typing import Any

import pytest

from emberd.catalog import EMBED, RERANK, Model
from emberd.client import verify_scores
from emberd.client.verify import Answer, drive, send, verify
from emberd.client.wire import Reply, Request
from emberd.endpoint import Endpoint
from emberd.errors import AuthenticationError, ServerMismatchError
from emberd.settings import ServerSpec
from fake_reranker import MODEL, FakeReranker
from fake_server import FakeServer
from http_server import Request as Received
from http_server import models, reply

ADAPTER = "test/adapter"


class _Lists(FakeReranker):
    """Lists another model after its own, as SGLang does for an adapter."""

    listed: dict[str, Any]

    def _models(self, request: Received, connection: socket.socket) -> bytes:
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


@pytest.mark.parametrize(("size", "sent"), [(None, [4]), (8, [4]), (3, [3, 1]), (1, [])])
def test_no_request_has_more_prompts_than_the_batch_size(size: int | None, sent: list[int]) -> None:
    with FakeReranker() as server:
        found = Endpoint(server.url, MODEL, 1)

        def ask(request: Request, **_: object) -> Generator[Request, Answer | None, bytes | None]:
            answer = yield request
            return answer.body if isinstance(answer, Reply) else None

        asked = verify_scores.steps(found, Model(MODEL), ask, size)
        assert drive(asked, partial(send, server.url, None, 10.0, None)).labels
        assert [len(items) for items in server.scored] == [1, 1, 1, 1, *sent]


def test_equal_scores_are_refused_also_if_each_prompt_is_sent_alone() -> None:
    with pytest.raises(ServerMismatchError, match="does not read"):
        verify_scores._compare("http://127.0.0.1:9", [0.5] * 4, [])

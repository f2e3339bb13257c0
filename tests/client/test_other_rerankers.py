"""Servers of other kinds as base_url of a reranker: what is used, and what is refused."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from emberd import Reranker
from emberd.catalog import SAME_LOGIT, logit
from emberd.errors import (
    BadReplyError,
    ServerMismatchError,
    ServerUnavailableError,
    TextTooLongError,
)
from emberd.prompts import RERANK_SUFFIX, rerank_frame
from fake_reranker import APPENDS, MODEL, FakeReranker, score_of, tokenize
from http_server import Answer, Request, reply
from other_servers import (
    InfinityReranks,
    TeiReranks,
    VllmClassifies,
    VllmGenerates,
)

every_vllm = pytest.mark.parametrize("kind", [VllmGenerates, VllmClassifies])

TEXTS = [
    "two\nlines\r\n\n and a tab\t",
    "closes <|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nyes",
    "向量检索把文本变成数字",
    "",
    "<|im_start|>",
    " ends with a space ",
]


@pytest.fixture(params=[VllmGenerates, VllmClassifies])
def server(request: pytest.FixtureRequest) -> Iterator[VllmGenerates]:
    with request.param() as running:
        yield running


def reranker_for(server: FakeReranker, **settings: Any) -> Reranker:
    return Reranker(MODEL, base_url=server.url, **settings)


def prompts_of(query: str, documents: list[str]) -> list[str]:
    return [document.join(rerank_frame(query)) for document in documents]


def expected(server: FakeReranker, query: str, documents: list[str]) -> list[float]:
    prompts = prompts_of(query, documents)
    return [float(np.float32(score_of([*tokenize(p), server.weights]))) for p in prompts]


@pytest.mark.parametrize("query", TEXTS)
def test_vllm_reads_the_prompt_to_the_byte_and_gives_its_scores(
    server: VllmGenerates, query: str
) -> None:
    scores = reranker_for(server).scores(query, TEXTS)
    sent = {prompt for request in server.scored for prompt in request}
    assert sent >= set(prompts_of(query, TEXTS))
    assert scores.tolist() == expected(server, query, TEXTS)


def test_vllm_is_sent_ten_thousand_tokens_as_they_are(server: VllmGenerates) -> None:
    server.context_tokens = 20_000
    document = "向量 two\n<|im_end|>" * 1000
    assert reranker_for(server).scores("q", [document]) == expected(server, "q", [document])
    assert server.scored[-1] == prompts_of("q", [document])


def test_scores_keep_the_order_of_the_documents_over_several_requests(
    server: VllmGenerates,
) -> None:
    documents = [f"document {number}" for number in range(100)]
    scores = reranker_for(server, batch_size=16).scores("q", documents)
    assert scores.tolist() == expected(server, "q", documents)


def test_a_reply_in_another_order_is_read_by_its_indices() -> None:
    with VllmClassifies() as server:
        server.shapes = lambda found: {**found, "data": found["data"][::-1]}
        scores = reranker_for(server).scores("q", TEXTS)
        assert scores.tolist() == expected(server, "q", TEXTS)


def test_a_document_is_cut_for_a_vllm_that_takes_token_ids() -> None:
    with VllmGenerates() as server:
        scores = reranker_for(server, truncate=True).scores("q", ["short", "x" * 5000])
        limit, tail = 3999, tokenize(RERANK_SUFFIX)
        ids = [*tokenize(prompts_of("q", ["x" * 5000])[0])[: limit - len(tail)], *tail]
        assert scores[1] == np.float32(score_of([*ids, 0]))


@pytest.mark.parametrize("truncate", [True, False])
def test_a_document_that_is_too_long_for_a_classifier_is_named(truncate: bool) -> None:
    with VllmClassifies() as server, pytest.raises(TextTooLongError) as raised:
        reranker_for(server, truncate=truncate).scores("q", ["short", "x" * 5000])
    assert raised.value.index == 1
    assert not any("xxxx" in prompt for request in server.scored for prompt in request)


@every_vllm
def test_a_prompt_that_vllm_cuts_during_the_work_is_an_error(kind: type[VllmGenerates]) -> None:
    with kind() as server:
        reranker = reranker_for(server)
        reranker.ensure()
        server.cuts_at = 3980
        # Of 3990 tokens, and so many bytes that they are counted.
        document = "x" * (3990 - len(tokenize(prompts_of("q", [""])[0])))
        with pytest.raises(BadReplyError):
            reranker.scores("q", [document])


def test_a_tokenizer_that_appends_a_token_does_so_in_a_classifier_only() -> None:
    with VllmGenerates(end_of_text=APPENDS) as server:
        assert reranker_for(server).scores("q", TEXTS).tolist() == expected(server, "q", TEXTS)
    with VllmClassifies(end_of_text=APPENDS) as server, pytest.raises(ServerMismatchError):
        reranker_for(server).scores("q", ["d"])


TEMPLATE = "<|im_start|>user\n<Query>: {query}\n<Document>: {document}<|im_end|>\n<think>"


@pytest.mark.parametrize(
    "faults",
    [
        {"template": TEMPLATE},
        {"separator": (APPENDS,)},
        {"trims": True},
        {"cuts_at": 300},
        {"reads_second_first": True},
        {"says_usage": False},
        {"head": lambda score: 1 - score},
        {"head": lambda score: 4 * score - 2},
        {"head": lambda score: 0.5},
        {"head": lambda score: float("nan")},
        {"shapes": lambda found: found["data"]},
        {"shapes": lambda found: {**found, "results": found["data"], "data": []}},
        {"shapes": lambda found: {**found, "data": [{**i, "index": 0} for i in found["data"]]}},
    ],
    ids=[
        "a second template",
        "a separator",
        "white space removed",
        "prompts cut",
        "the document first",
        "no count of tokens",
        "the probability of no",
        "no activation",
        "equal scores",
        "nan",
        "a bare list",
        "results of rerank",
        "an index twice",
    ],
)
def test_a_classifier_that_does_not_give_the_scores_of_the_prompt_is_refused(
    faults: dict[str, Any],
) -> None:
    with VllmClassifies() as server:
        for name, value in faults.items():
            setattr(server, name, value)
        with pytest.raises(ServerMismatchError):
            reranker_for(server).scores("q", ["d"])


@pytest.mark.parametrize("cuts_at", [100, 300])
def test_a_vllm_that_cuts_prompts_is_refused(cuts_at: int) -> None:
    with VllmGenerates() as server:
        server.cuts_at = cuts_at
        with pytest.raises(ServerMismatchError):
            reranker_for(server).scores("q", ["d"])


def test_a_vllm_without_a_tokenizer_route_is_refused(server: VllmGenerates) -> None:
    server.has_tokenizer = False
    with pytest.raises(ServerMismatchError):
        reranker_for(server).scores("q", ["d"])


def test_an_old_vllm_that_generates_is_refused() -> None:
    with VllmGenerates(closed={"/generative_scoring": 404}) as server:
        with pytest.raises(ServerMismatchError, match="/score"):
            reranker_for(server).scores("q", ["d"])


@pytest.mark.parametrize(
    ("kind", "name"),
    [(InfinityReranks, "infinity"), (TeiReranks, "Text Embeddings Inference")],
)
def test_a_server_that_cannot_read_the_prompt_is_refused_by_its_name(
    kind: type[FakeReranker], name: str
) -> None:
    with kind() as server, pytest.raises(ServerMismatchError, match=name):
        reranker_for(server).scores("q", ["d"])


class _BecomesClassifier(VllmGenerates):
    """Dies when it first gets token ids, and comes back at its address as a classifier."""

    context_then = 4000
    is_armed = False

    def _score(self, request: Request, connection: socket.socket) -> bytes:
        if self.is_armed and isinstance(request.body["items"][0], list):
            port = int(self.url.rpartition(":")[2])
            self.die()
            self.context_tokens = self.context_then
            self.__class__ = VllmClassifies  # type: ignore[assignment]
            self.revive(port)
            raise ConnectionError
        return super()._score(request, connection)


def test_a_document_that_was_cut_is_no_text_of_numbers_for_a_classifier() -> None:
    documents = ["x" * 5000, "b"]
    with _BecomesClassifier() as server:
        server.context_then = 100_000
        reranker = reranker_for(server, truncate=True)
        reranker.ensure()
        server.is_armed = True
        assert reranker.scores("q", documents).tolist() == expected(server, "q", documents)
    with _BecomesClassifier() as server:
        reranker = reranker_for(server, truncate=True)
        reranker.ensure()
        server.is_armed = True
        with pytest.raises(TextTooLongError) as raised:
            reranker.scores("q", documents)
        assert raised.value.index == 0


@pytest.mark.parametrize("kind", [FakeReranker, VllmGenerates, VllmClassifies])
def test_a_server_that_does_not_say_how_many_tokens_it_read_is_refused(
    kind: type[FakeReranker],
) -> None:
    """It may cut prompts, also after the verification."""
    with kind() as server:
        server.says_usage = False
        with pytest.raises(ServerMismatchError):
            reranker_for(server).ensure()
        server.says_usage = True
        reranker = reranker_for(server)
        reranker.ensure()
        server.says_usage = False
        with pytest.raises(BadReplyError):
            reranker.scores("q", ["d"])


@pytest.mark.parametrize("batch_size", [None, 3])
def test_a_limit_of_the_rate_before_prompts_were_compared_in_one_request_is_an_error(
    batch_size: int | None,
) -> None:
    """Prompts may get the scores of others."""
    with FakeReranker() as server:
        server.fault, server.limited_above = "reordered", 1
        with pytest.raises(ServerUnavailableError):
            reranker_for(server, batch_size=batch_size).ensure()
        reranker_for(server, batch_size=1).ensure()  # has no such requests


def test_a_limit_of_the_rate_before_a_router_was_recognised_is_an_error() -> None:
    class Routes(FakeReranker):
        def _models(self, request: Request, connection: socket.socket) -> bytes:
            entry = {"id": self.model, "object": "model", "owned_by": "local"}
            return reply(200, {"object": "list", "data": [entry, entry]})

        def _score(self, request: Request, connection: socket.socket) -> bytes:
            self.limited_above = 0 if len(self.scored) == 2 else None
            return super()._score(request, connection)

    with Routes() as server, pytest.raises(ServerUnavailableError):
        reranker_for(server).ensure()


@pytest.mark.parametrize("distance", [0.3, 3.0])
def test_a_router_of_two_rerankers_is_refused(distance: float) -> None:
    class Routes(VllmGenerates):
        """Two servers, of which each gets every other request."""

        turn = 0

        def _models(self, request: Request, connection: socket.socket) -> bytes:
            entry = {"id": self.model, "object": "model", "owned_by": "local"}
            return reply(200, {"object": "list", "data": [entry, entry]})

        def routes(self) -> dict[str, Answer]:
            score = FakeReranker._score
            return {**super().routes(), "/v1/score": partial(score, self), "/v1/tokenize": tokens}

        def scores_of(self, read: list[list[int]]) -> list[float]:
            self.turn += 1
            moved = [logit(one) + distance * (self.turn % 2) for one in super().scores_of(read)]
            return [1 / (1 + math.exp(-one)) for one in moved]

    with Routes() as server:
        tokens = server._tokenize
        reranker = reranker_for(server)
        if distance < SAME_LOGIT:
            reranker.ensure()
            return
        with pytest.raises(ServerMismatchError, match="several models"):
            reranker.ensure()

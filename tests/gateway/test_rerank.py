"""Requests for rankings, in Cohere's shape."""

from __future__ import annotations

from typing import Any

import pytest

from emberd.prompts import TASKS, apply, rerank_frame
from fake_reranker import score_of, tokenize
from gateway.conftest import Faked

DOCUMENTS = ["one", "two\nlines {text}", "数字 <|im_end|>", ""]
QUERY = "which?"


def scores(task: str | None = None) -> list[float]:
    frame = rerank_frame(QUERY, task)
    return [score_of([*tokenize(apply(frame, document)), 0]) for document in DOCUMENTS]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_the_best_documents_come_first(faked: Faked, path: str) -> None:
    reply = faked.running.post(path, model="reranker", query=QUERY, documents=DOCUMENTS)
    assert reply.status_code == 200, reply.text
    results = reply.json()["results"]
    found = {result["index"]: result["relevance_score"] for result in results}
    assert [result["relevance_score"] for result in results] == sorted(found.values(), reverse=True)
    assert [found[i] for i in range(4)] == pytest.approx(scores(), abs=1e-6)
    assert set(results[0]) == {"index", "relevance_score"}
    frame = rerank_frame(QUERY)
    sent = [tokenize(apply(frame, document)) for document in DOCUMENTS]
    assert reply.json()["usage"]["total_tokens"] == sum(map(len, sent))


@pytest.mark.parametrize(
    ("model", "fields", "task"),
    [
        ("test/reranker", {}, "web"),
        ("reranker?task=code", {}, "code"),
        ("reranker", {"task": "Find the law"}, "Find the law"),
    ],
)
def test_the_server_gets_the_prompt_to_the_byte(
    faked: Faked, model: str, fields: dict[str, Any], task: str
) -> None:
    before = len(faked.reranker.scored)
    reply = faked.running.post(
        "/v1/rerank", model=model, query=QUERY, documents=DOCUMENTS, **fields
    )
    assert reply.status_code == 200, reply.text
    sent = [prompt for request in faked.reranker.scored[before:] for prompt in request]
    frame = rerank_frame(QUERY, TASKS.get(task, task))
    expected = [apply(frame, document) for document in DOCUMENTS]
    assert sorted(sent) in (sorted(expected), sorted(tokenize(each) for each in expected))


@pytest.mark.parametrize("top_n", [2, 2.0])
def test_top_n_documents_and_objects_are_as_cohere_has_them(faked: Faked, top_n: float) -> None:
    documents = [{"text": text, "id": 3} for text in DOCUMENTS]
    reply = faked.running.post(
        "/v1/rerank",
        model="reranker",
        query=QUERY,
        documents=documents,
        top_n=top_n,
        return_documents=True,
    )
    results = reply.json()["results"]
    assert len(results) == 2
    assert all(each["document"]["text"] == DOCUMENTS[each["index"]] for each in results)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"query": 3}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": "a"}, "documents"),
        ({"documents": [{"body": "a"}]}, "document"),
        ({"top_n": 0}, "top_n"),
        ({"top_n": 1.5}, "top_n"),
        ({"top_n": True}, "top_n"),
        ({"return_documents": "yes"}, "return_documents"),
        ({"return_documents": {}}, "return_documents"),
        ({"model": "qwen3-embedding-0.6b"}, "embeds"),
        ({"model": "reranker:query"}, "role"),
        ({"input_type": "query"}, "role"),
        ({"task": "nonsense"}, "nonsense"),
        ({"task": ""}, "blank"),
    ],
)
def test_a_wrong_request_is_refused(faked: Faked, body: dict[str, Any], said: str) -> None:
    whole = {"model": "reranker", "query": QUERY, "documents": DOCUMENTS, **body}
    reply = faked.running.post("/v1/rerank", **whole)
    assert reply.status_code == 400
    assert said in reply.json()["error"]["message"]


def test_a_query_that_cannot_be_encoded_is_refused(faked: Faked) -> None:
    body = rb'{"model": "reranker", "query": "\ud800", "documents": ["a"]}'
    headers = {"content-type": "application/json"}
    with faked.running.client() as client:
        reply = client.post("/v1/rerank", content=body, headers=headers)
    assert reply.status_code == 400

"""The rerankers of both frameworks send the same requests, to the byte."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from contract.rerankers import KINDS, aorder, order
from emberd import TASKS
from emberd.prompts import RERANK_SUFFIX
from fake_reranker import MODEL, FakeReranker

_TEXTS = ["two\nlines\r\n\n and a tab\tin it", "<|im_end|>", "向量检索", "{text}", "word " * 500]
_QUERY = "what\n is <|im_start|> it? "


@pytest.fixture
def server() -> Iterator[FakeReranker]:
    with FakeReranker() as running:
        yield running


def _attached(kind: Any, server: FakeReranker, **settings: Any) -> Any:
    # The verification sends its own requests, which these tests ignore.
    made = kind(model=MODEL, base_url=server.url, **settings)
    made.reranker.ensure()
    server.requests.clear()
    return made


@pytest.mark.parametrize("instruction", [None, "code", "Find the {bug}"])
async def test_both_frameworks_send_the_same_requests(
    server: FakeReranker, instruction: str | None
) -> None:
    seen = []
    for kind in KINDS:
        made = _attached(kind, server, instruction=instruction, batch_size=3)
        await made.reranker.aensure()
        server.requests.clear()
        order(made, _QUERY, _TEXTS)
        await aorder(made, _QUERY, _TEXTS)
        # Those of one call are in flight together, in any order.
        requests = [(each.method, each.path, each.body) for each in server.requests]
        seen.append(sorted(requests, key=str))
    assert seen[0] == seen[1]
    sizes = [len(body["items"]) for _, path, body in seen[0] if path == "/v1/score"]
    assert sorted(sizes) == [2, 2, 3, 3]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_prompt_contains_instruction_query_and_text_unmodified(
    kind: Any, server: FakeReranker
) -> None:
    order(_attached(kind, server, instruction="facts"), _QUERY, _TEXTS)
    sent = {item for items in server.scored for item in items}
    inner = f"<Instruct>: {TASKS['facts']}\n<Query>: {_QUERY}\n<Document>: "
    texts = {item.removesuffix(RERANK_SUFFIX).partition(inner)[2] for item in sent}
    # LlamaIndex strips the white space around the text of a node.
    assert {text.strip() for text in texts} == {text.strip() for text in _TEXTS}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
async def test_concurrent_calls_stay_within_max_concurrency(
    kind: Any, server: FakeReranker
) -> None:
    made = _attached(kind, server, max_concurrency=3, batch_size=4)
    server.most_in_flight, server.latency_s, server.overlap = 0, 0.1, 2
    ranking = await aorder(made, _QUERY, [f"text {number}" for number in range(60)])
    assert len(ranking) == 60
    assert 1 < server.most_in_flight <= 3

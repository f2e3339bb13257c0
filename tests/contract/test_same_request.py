"""The exact requests of both frameworks, recorded by a fake server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import MetadataMode, TextNode

from contract.frameworks import BOTH, Framework, LangChain, LlamaIndex
from emberd import RejectedError
from fake_server import END_OF_TEXT, QWEN, FakeServer, vector_of, vectors_of
from http_server import reply
from llama_index.embeddings.emberd import EmberdEmbedding
from managed import same

_DIMENSIONS = 1024  # of Qwen3-Embedding-0.6B
_TASK = "Given a web search query, retrieve relevant passages that answer the query"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(model=QWEN, dimensions=_DIMENSIONS) as running:
        yield running


@pytest.fixture(params=BOTH, ids=lambda made: made.__name__)
def made(request: pytest.FixtureRequest) -> type[Framework]:
    kind: type[Framework] = request.param
    return kind


def _attached(made: type[Framework], server: FakeServer, **settings: Any) -> Framework:
    # The verification sends its own requests, which these tests ignore.
    framework = made(model=QWEN, base_url=server.url, **settings)
    framework.embedder.ensure()
    server.requests.clear()
    server.most_in_flight = 0
    return framework


@pytest.mark.parametrize(
    ("instruction", "sent"),
    [
        (None, f"Instruct: {_TASK}\nQuery:what\n is it?"),
        ("Find the bug", "Instruct: Find the bug\nQuery:what\n is it?"),
        ("", "what\n is it?"),
        ("q: {text}!", "q: what\n is it?!"),
    ],
)
def test_query_is_sent_with_its_exact_instruction(
    made: type[Framework], server: FakeServer, instruction: str | None, sent: str
) -> None:
    """No space after ``Query:``, and newlines kept."""
    framework = _attached(made, server, query_instruction=instruction)
    assert same(framework.query("what\n is it?"), vector_of(sent, _DIMENSIONS))
    assert server.embedded == [[sent]]


def test_documents_are_sent_unmodified(made: type[Framework], server: FakeServer) -> None:
    framework = _attached(made, server)
    texts = ["file: a.txt\n\nbody ", "  indented", "{text}"]
    assert same(framework.documents(texts), vectors_of(texts, _DIMENSIONS))
    assert sorted(text for batch in server.embedded for text in batch) == sorted(texts)


def test_blank_documents_are_sent_as_their_token_ids(
    made: type[Framework], server: FakeServer
) -> None:
    """The server rejects a whole batch that contains one blank text."""
    framework = _attached(made, server)
    texts = ["a", " \n", ""]
    assert same(framework.documents(texts), vectors_of(texts, _DIMENSIONS))
    sent = [given for batch in server.embedded for given in batch]
    assert [END_OF_TEXT] in sent
    assert [*b" \n", END_OF_TEXT] in sent


async def test_both_frameworks_send_the_same_requests(server: FakeServer) -> None:
    texts = [f"text {number} {'x' * number}" for number in range(10)]
    seen = []
    for made in BOTH:
        framework = _attached(made, server, dimensions=64)
        framework.query("one")
        await framework.aquery("two")
        framework.documents(texts)
        await framework.adocuments(texts)
        seen.append([(request.method, request.path, request.body) for request in server.requests])
    assert seen[0] == seen[1]
    assert all("dimensions" not in body for _, _, body in seen[0]), "the client truncates vectors"


@pytest.mark.parametrize(
    ("made", "slices"), [(LangChain, {"batch_size": 2}), (LlamaIndex, {"embed_batch_size": 2})]
)
async def test_concurrent_slices_stay_within_max_concurrency(
    made: type[Framework], slices: dict[str, int], server: FakeServer
) -> None:
    """LlamaIndex starts all slices of an asynchronous call concurrently."""
    framework = _attached(made, server, max_concurrency=3, **slices)
    server.most_in_flight, server.latency_s, server.overlap = 0, 0.2, 2
    texts = [f"text {number}" for number in range(400)]
    assert same(await framework.adocuments(texts), vectors_of(texts, _DIMENSIONS))
    assert 1 < server.most_in_flight <= 3


async def test_five_hundred_batches_stay_within_the_default_concurrency(server: FakeServer) -> None:
    """Without ``num_workers``, LlamaIndex does not limit concurrency itself."""
    embedding = EmberdEmbedding(model_name=QWEN, base_url=server.url, embed_batch_size=2)
    await embedding.embedder.aensure()
    server.most_in_flight, server.latency_s = 0, 0.01
    texts = [f"text {number}" for number in range(1000)]
    vectors = await embedding.aget_text_embedding_batch(texts)
    assert 1 < server.most_in_flight <= embedding.max_concurrency == 8
    assert len(vectors) == 1000
    for place in (0, 1, 2, 999):
        assert same(vectors[place], vector_of(texts[place], _DIMENSIONS))


@pytest.mark.parametrize("use_async", [False, True])
def test_metadata_lines_of_a_node_are_sent_as_llama_index_formats_them(
    server: FakeServer, use_async: bool
) -> None:
    embedding = EmberdEmbedding(model_name=QWEN, base_url=server.url)
    embedding.embedder.ensure()
    server.requests.clear()
    nodes = [
        TextNode(text="the body\n\n", metadata={"file": "a.txt", "page": 3}),
        TextNode(text="  ", metadata={"file": "b.txt"}),
        TextNode(text="no file", metadata={"file": "c.txt"}, excluded_embed_metadata_keys=["file"]),
    ]
    VectorStoreIndex(nodes, embed_model=embedding, use_async=use_async)
    written = [node.get_content(MetadataMode.EMBED) for node in nodes]
    assert written[0] == "file: a.txt\npage: 3\n\nthe body"
    assert sorted(text for batch in server.embedded for text in batch) == sorted(written)


def test_rejected_request_raises_an_error_of_emberd(
    made: type[Framework], server: FakeServer
) -> None:
    framework = _attached(made, server)
    server.first.append(reply(400, b'{"object":"error","message":"no such thing"}'))
    with pytest.raises(RejectedError, match="no such thing"):
        framework.query("x")

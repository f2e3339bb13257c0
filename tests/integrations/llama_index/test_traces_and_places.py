"""What a trace shows of a call, and where an error says that a text is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.schema import TextNode
from llama_index.core.storage.kvstore import SimpleKVStore

from emberd import TextError, TextTooLongError
from fake_server import QWEN, FakeServer
from llama_index.embeddings.emberd import EmberdEmbedding

_SLICE = 10
_FINE = ["a text"] * 33
_LONG = "word " * 400


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer(model=QWEN, dimensions=1024, context_tokens=1000) as found:
        yield found


@pytest.fixture(params=[None, SimpleKVStore], ids=["without-cache", "with-cache"])
def embedding(request: pytest.FixtureRequest, server: FakeServer) -> EmberdEmbedding:
    cache = request.param() if request.param else None
    return EmberdEmbedding(
        model_name=QWEN, base_url=server.url, embed_batch_size=_SLICE, embeddings_cache=cache
    )


@pytest.fixture
def spans() -> Iterator[Callable[[], Counter[str]]]:
    """The names of the methods that a trace has shown so far, without their class."""
    root, handler = get_dispatcher(), SimpleSpanHandler()
    root.add_span_handler(handler)
    yield lambda: Counter(
        span.id_.partition("-")[0].partition(".")[2] for span in handler.completed_spans
    )
    root.span_handlers.remove(handler)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("get_query_embedding", "a query"),
        ("get_text_embedding", "a text"),
        ("get_text_embedding_batch", _FINE),
    ],
)
async def test_a_trace_shows_a_call_once(
    name: str, argument: Any, embedding: EmberdEmbedding, spans: Callable[[], Counter[str]]
) -> None:
    getattr(embedding, name)(argument)
    await getattr(embedding, f"a{name}")(argument)
    shown = spans()
    assert (shown[name], shown[f"a{name}"]) == (1, 1)
    assert max(shown.values()) == 1
    await embedding.embedder.aclose()


@pytest.mark.parametrize(
    ("text", "error"), [(7, TextError), ("\ud800", TextError), (_LONG, TextTooLongError)]
)
async def test_an_error_names_the_place_in_the_callers_list(
    text: Any, error: type[TextError], embedding: EmberdEmbedding
) -> None:
    texts = [*_FINE, text, *_FINE]
    with pytest.raises(error, match="Text 33 ") as caught:
        embedding.get_text_embedding_batch(texts)
    assert caught.value.index == 33
    with pytest.raises(error, match="Text 33 ") as caught:
        await embedding.aget_text_embedding_batch(texts)
    assert caught.value.index == 33
    await embedding.embedder.aclose()


def test_an_error_names_the_node_and_shows_its_text(embedding: EmberdEmbedding) -> None:
    nodes = [TextNode(text=text) for text in (*_FINE, _LONG)]
    with pytest.raises(TextTooLongError, match=r"Text 33 \('word word") as caught:
        embedding(nodes)
    assert caught.value.index == 33
    assert caught.value.limit is not None

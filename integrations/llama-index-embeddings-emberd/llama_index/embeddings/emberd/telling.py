"""What LlamaIndex's callbacks and instrumentation are told of an embedded slice of texts.

``BaseEmbedding`` tells it too, but has pydantic check, and copy, every number of every vector for
the event: a quarter of the time of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.embedding import (
    EmbeddingEndEvent,
    EmbeddingStartEvent,
)

_dispatcher = get_dispatcher(__name__)

Vectors = list[list[float]]


def slices(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Yield ``texts`` in lists of ``size``."""
    source = iter(texts)
    while part := list(islice(source, size)):
        yield part


@contextmanager
def told(embedding: BaseEmbedding, texts: list[str]) -> Iterator[Callable[[Vectors], Vectors]]:
    """Tell that ``texts`` are embedded in this block.

    Yields:
        A function that tells their vectors and returns them.
    """
    payload: dict[str, Any] = embedding.to_payload()
    _dispatcher.event(EmbeddingStartEvent(model_dict=payload))
    made: list[Vectors] = []
    with embedding.callback_manager.event(
        CBEventType.EMBEDDING, payload={EventPayload.SERIALIZED: payload}
    ) as event:

        def tell(vectors: Vectors) -> Vectors:
            made.append(vectors)
            event.on_end({EventPayload.CHUNKS: texts, EventPayload.EMBEDDINGS: vectors})
            return vectors

        yield tell
    for vectors in made:
        _dispatcher.event(EmbeddingEndEvent.model_construct(chunks=texts, embeddings=vectors))

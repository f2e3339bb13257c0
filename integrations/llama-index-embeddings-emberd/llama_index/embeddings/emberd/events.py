"""Events for LlamaIndex's callbacks and instrumentation about a slice of embedded texts.

``BaseEmbedding`` sends them too, but lets pydantic check and copy each number of each vector for an
event, which takes a quarter of the time of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final, TypeVar

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.embedding import (
    EmbeddingEndEvent,
    EmbeddingStartEvent,
)

from emberd import TextError

_dispatcher = get_dispatcher(__name__)
_CULPRIT: Final = "_llama_index_text"

Vectors = list[list[float]]
C = TypeVar("C", bound=Callable[..., Any])


def without_span(method: C) -> C:
    """Return a method of the base class without its span, which the override has already."""
    bare: C = getattr(method, "__wrapped__", method)
    return bare


def slices(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Yield ``texts`` in lists of ``size``."""
    source = iter(texts)
    while part := list(islice(source, size)):
        yield part


@contextmanager
def embedding_events(
    embedding: BaseEmbedding, texts: list[str]
) -> Iterator[Callable[[Vectors], Vectors]]:
    """Send the events of embedding ``texts`` in this block.

    Yields:
        A function to call with their vectors, which it returns.
    """
    payload: dict[str, Any] = embedding.to_payload()
    _dispatcher.event(EmbeddingStartEvent(model_dict=payload))
    made: list[Vectors] = []
    with embedding.callback_manager.event(
        CBEventType.EMBEDDING, payload={EventPayload.SERIALIZED: payload}
    ) as event:

        def on_vectors(vectors: Vectors) -> Vectors:
            made.append(vectors)
            event.on_end({EventPayload.CHUNKS: texts, EventPayload.EMBEDDINGS: vectors})
            return vectors

        yield on_vectors
    for vectors in made:
        _dispatcher.event(EmbeddingEndEvent.model_construct(chunks=texts, embeddings=vectors))


@contextmanager
def part(texts: Sequence[str]) -> Iterator[None]:
    """Note the text of an error in this block, which embeds a part of what ``whole`` has."""
    try:
        yield
    except TextError as error:
        setattr(error, _CULPRIT, texts[error.index])
        raise


@contextmanager
def whole(texts: Sequence[str]) -> Iterator[None]:
    """Give errors in this block the place of their text in ``texts``, the list of the caller."""
    try:
        yield
    except TextError as error:
        if not hasattr(error, _CULPRIT) or not isinstance(texts, Sequence):
            raise
        culprit = getattr(error, _CULPRIT)
        place = next((i for i, text in enumerate(texts) if text is culprit), error.index)
        raise error.at(place) from None

"""What a server computes of a text, on the wire: a vector, or the score of a reranker.

Both are a row of numbers: a score is a row of one. So batches, retries, limits, coalescing and the
recovery of a lost server are the same for both.
"""

from __future__ import annotations

import numpy as np

from emberd.client import scores, vectors, wire
from emberd.client.event_loops import Steps
from emberd.client.inputs import Input
from emberd.client.vectors import Floats
from emberd.client.wire import Embeddings, Request
from emberd.endpoint import Endpoint


def request(
    endpoint: Endpoint,
    inputs: list[Input],
    dimensions: int | None = None,
    tokens: int | None = None,
) -> Request:
    """Return the request for the rows of ``inputs``, which are all strings or all token ids.

    Args:
        endpoint: Where it is sent.
        inputs: The texts.
        dimensions: Length to which a vector is cut by the server; None for native.
        tokens: How many tokens ``inputs`` have; None if not known.
    """
    if endpoint.labels:
        return scores.score_request(endpoint, inputs, tokens)
    native = endpoint.dimensions
    return wire.embed_request(endpoint.model, inputs, dimensions, native=native, tokens=tokens)


def read(
    endpoint: Endpoint, body: bytes, count: int, tokens: int | None = None
) -> Steps[Embeddings]:
    """Return the ``count`` rows of a reply of ``endpoint``, and the model that it names.

    Args:
        endpoint: Where it comes from.
        body: Its body.
        count: How many texts were sent.
        tokens: How many tokens they have; None if not known.

    Raises:
        BadReplyError: The reply is invalid.
    """
    if endpoint.labels:
        return scores.read_scores(endpoint, body, count, tokens)
    return (yield from wire.read_embeddings(body, count, endpoint.dimensions, tokens))


def decode(
    endpoint: Endpoint, raws: list[bytes], wanted: int | None, *, cut_by_server: bool
) -> Steps[Floats]:
    """Return the rows as a matrix of float32.

    Args:
        endpoint: Where they come from.
        raws: The rows as ``read`` returned them.
        wanted: Length to which vectors are cut; None for native.
        cut_by_server: Whether the server was asked to do that.

    Raises:
        BadReplyError: A vector is not one of norm one and of the right length.
    """
    if endpoint.labels:
        return np.frombuffer(b"".join(raws), "<f4").astype(np.float32).reshape(-1, 1)
    native = endpoint.dimensions
    return (yield from vectors.decode(raws, native, wanted, cut_by_server=cut_by_server))

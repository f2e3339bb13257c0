"""The body of a good answer, taken apart and put in order."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any, Final

from emberd.client.protocol import parse
from emberd.errors import BadReplyError

Raw = bytes | list[float]
"""One embedding as it came: little-endian float32, or numbers."""

_NUMBERS: Final = frozenset({int, float})
_FLOAT_BYTES: Final = 4
_SHOWN_BYTES: Final = 60
_ADVICE: Final = "No vector of this reply is used; look at what answers at this address."


@dataclass(frozen=True, slots=True)
class Embedded:
    """What a good answer holds.

    Attributes:
        vectors: The embeddings, in the order of their ``index`` fields.
        model: The name that the server gives for what made them; None when it gives none.
    """

    vectors: list[Raw]
    model: str | None


def read(body: bytes, count: int) -> Embedded:
    """Return the ``count`` embeddings of a reply, and the model that it names.

    Raises:
        BadReplyError: It is not JSON, or an embedding is missing, doubled or of another form.
    """
    try:
        reply = parse(body)
    except ValueError:
        raise BadReplyError(f"{_what_it_is(body)} {_ADVICE}") from None
    model = reply.get("model") if isinstance(reply, dict) else None
    return Embedded(_ordered(reply, count), model if isinstance(model, str) else None)


def _ordered(reply: Any, count: int) -> list[Raw]:
    entries = reply.get("data") if isinstance(reply, dict) else None
    if not isinstance(entries, list):
        raise BadReplyError(f"The reply is JSON without a list of vectors ('data'). {_ADVICE}")
    if len(entries) != count:
        raise BadReplyError(f"The reply has {len(entries)} vectors for {count} texts. {_ADVICE}")
    ordered: list[Raw | None] = [None] * count
    for entry in entries:
        index = _index(entry, count)
        if ordered[index] is not None:
            raise BadReplyError(f"The reply has two vectors for text {index}. {_ADVICE}")
        ordered[index] = _raw(entry.get("embedding"), index)
    return [raw for raw in ordered if raw is not None]


def prompt_tokens(body: bytes) -> int | None:
    """Return how many tokens the server says it read; None when it does not say."""
    reply = parse(body)
    usage = reply.get("usage") if isinstance(reply, dict) else None
    tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return tokens if type(tokens) is int else None


def _what_it_is(body: bytes) -> str:
    start = body.lstrip()[:_SHOWN_BYTES].decode("utf-8", "replace")
    if start.startswith("<"):
        return f"The reply is a page of HTML or XML, not JSON: {start!r}."
    if start.startswith("{"):
        return f"The reply is JSON that breaks off after {len(body)} bytes."
    return f"The reply of {len(body)} bytes is not JSON: {start!r}."


def _index(entry: Any, count: int) -> int:
    index = entry.get("index") if isinstance(entry, dict) else None
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < count:
        raise BadReplyError(
            f"The reply has a vector with index {index!r} where 0 to {count - 1} are possible. "
            f"{_ADVICE}"
        )
    return index


def _raw(embedding: Any, index: int) -> Raw:
    if isinstance(embedding, list) and _NUMBERS.issuperset(map(type, embedding)):
        return embedding  # NumPy would read "1" and True as numbers too
    if isinstance(embedding, str):
        try:
            packed = base64.b64decode(embedding, validate=True)
        except (binascii.Error, ValueError):
            packed = b"?"  # falls through to the length check
        if len(packed) % _FLOAT_BYTES == 0:
            return packed
    raise BadReplyError(
        f"Vector {index} of the reply is neither base64 of float32 nor a list of numbers. {_ADVICE}"
    )

"""The body of a good answer, taken apart and put in order.

What is as it should be is read in one step, base64 included. What is not is read once more by hand,
for an error that says what is wrong with it.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import pybase64

from emberd.client.protocol import parse
from emberd.errors import BadReplyError

Raw = bytes | list[float]
"""One embedding as it came: little-endian float32, or numbers."""

_NUMBERS: Final = frozenset({int, float})
_FLOAT_BYTES: Final = 4
_SHOWN_BYTES: Final = 60
_ADVICE: Final = "No vector of this reply is used; look at what answers at this address."


@dataclass(frozen=True, slots=True)
class Answer:
    """What a good answer holds.

    Attributes:
        vectors: The embeddings, in the order of their ``index`` fields.
        model: The name that the server gives for what made them; None when it gives none.
    """

    vectors: list[Raw]
    model: str | None


class _Entry(msgspec.Struct):
    embedding: str | list[float]
    index: int


class _Reply(msgspec.Struct):
    data: list[_Entry]
    model: Any = None


_READER: Final = msgspec.json.Decoder(_Reply)


def read(body: bytes, count: int) -> Answer:
    """Return the ``count`` embeddings of a reply, and the model that it names.

    Raises:
        BadReplyError: It is not JSON, or an embedding is missing, doubled or of another form.
    """
    try:
        reply = _READER.decode(body)
        raws = [_unpacked(entry.embedding) for entry in reply.data]
    except (msgspec.DecodeError, RecursionError, ValueError):
        return _by_hand(body, count)
    in_order = [entry.index for entry in reply.data] == list(range(count))
    if not in_order or any(type(raw) is bytes and len(raw) % _FLOAT_BYTES for raw in raws):
        return _by_hand(body, count)
    return Answer(raws, reply.model if isinstance(reply.model, str) else None)


def _unpacked(embedding: str | list[float]) -> Raw:
    if isinstance(embedding, str):
        return pybase64.b64decode(embedding, validate=True)
    return embedding


def _by_hand(body: bytes, count: int) -> Answer:
    try:
        reply = parse(body)
    except ValueError:
        raise BadReplyError(f"{_what_it_is(body)} {_ADVICE}") from None
    model = reply.get("model") if isinstance(reply, dict) else None
    return Answer(_ordered(reply, count), model if isinstance(model, str) else None)


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

"""Keys: what a vector depends on, as a short hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

SIZE: Final = 32
"""Bytes of a key: nobody makes two texts with the same one."""

_FORMAT: Final = b"emberd cache 1"
"""Another format of records or keys gets another number here, and never meets this one's."""


def key(identity: str, text: str) -> bytes:
    """Return the key of one text; see ``keys``."""
    return keys(identity, [text])[0]


def keys(identity: str, texts: Iterable[str]) -> list[bytes]:
    """Return the keys of texts.

    Args:
        identity: What decides the vector of a text besides the text: model, revision, precision.
        texts: As the model reads them, with their instructions.

    Returns:
        One key a text, each of ``SIZE`` bytes.
    """
    start = hashlib.blake2b(_framed(identity), digest_size=SIZE, person=_FORMAT)
    found = []
    for text in texts:
        hasher = start.copy()
        hasher.update(_framed(text))
        found.append(hasher.digest())
    return found


def _framed(text: str) -> bytes:
    # With its length before it, no end of one part can pass for the beginning of the next. Half
    # a surrogate pair is no Unicode, but Python's strings may hold one.
    raw = text.encode("utf-8", "surrogatepass")
    return len(raw).to_bytes(8, "little") + raw

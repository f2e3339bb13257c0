"""A server of embeddings that answers at once: what is left of a measurement is the client.

A text's vector is one of a small pool, chosen by the text, so that a vector that went to the wrong
text shows; all are written as JSON beforehand, and an answer is put together from pieces.
``expected(texts)`` has what the vectors must be.
"""

from __future__ import annotations

import base64
import socket
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson

from emberd import catalog
from fake_server import FakeServer, as_on_card, vector_of_ids
from http_server import Request, head
from server_process import in_own_process

MODEL: Final = "Qwen/Qwen3-Embedding-4B"
DIMENSIONS: Final = 2560

_POOL: Final = 256
_CARD: Final = catalog.lookup(MODEL).reference
_ON_CARD: Final = [*_CARD.queries, *_CARD.documents] if _CARD else []


@contextmanager
def canned_server(**fields: Any) -> Iterator[str]:
    """Run a ``CannedServer`` with these fields while the context lasts, and give its URL."""
    with in_own_process(CannedServer, **fields) as url:
        yield url


def expected(texts: Iterable[str], dimensions: int = DIMENSIONS) -> npt.NDArray[np.float32]:
    """Return the vectors of ``texts`` as they reach the server, ``(n, dimensions)``, float32."""
    return pool(dimensions)[[_place(text) for text in texts]]


@cache
def pool(dimensions: int) -> npt.NDArray[np.float32]:
    """Return all vectors that there are, each of norm one."""
    rows = [vector_of_ids([place], dimensions) for place in range(_POOL)]
    on_card = [as_on_card(text.encode(), rows[place]) for place, text in enumerate(_ON_CARD)]
    return np.stack([*rows, *on_card])


def _place(given: str | list[int]) -> int:
    text = given if isinstance(given, str) else str(given)
    if text in _ON_CARD:
        return _POOL + _ON_CARD.index(text)
    return zlib.crc32(text.encode()) % _POOL


def _tokens(given: str | list[int]) -> int:
    return len(given.encode()) + 1 if isinstance(given, str) else len(given)


@dataclass
class CannedServer(FakeServer):
    """The server.

    Args:
        floats: It does not support base64, and always sends numbers.
        sleep_s: How long it takes over each request of embeddings, in seconds.
        serial: It takes up one request after another.
    """

    model: str = MODEL
    dimensions: int = DIMENSIONS
    context_tokens: int | None = 32_768
    sleep_s: float = 0.0
    serial: bool = False

    keeps_requests = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._turn = threading.Lock()
        rows = pool(self.dimensions)
        self._floats = [orjson.dumps(row.astype(np.float64).tolist()) for row in rows]
        packed = [b'"' + base64.b64encode(row.astype("<f4").tobytes()) + b'"' for row in rows]
        self._packed = self._floats if self.floats else packed

    def _embeddings(self, request: Request, connection: socket.socket) -> bytes:
        if self.sleep_s:
            with self._turn if self.serial else nullcontext():
                time.sleep(self.sleep_s)
        asked = orjson.loads(request.content)
        inputs = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
        vectors = self._packed if asked.get("encoding_format") == "base64" else self._floats
        pieces = [b'{"object":"list","data":[']
        for index, text in enumerate(inputs):
            comma = b"," if index else b""
            pieces.append(b'%b{"object":"embedding","index":%d,"embedding":' % (comma, index))
            pieces += (vectors[_place(text)], b"}")
        read = sum(map(_tokens, inputs))
        pieces.append(
            b'],"model":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d}}'
            % (orjson.dumps(self.model), read, read)
        )
        # In one piece: a small separate head would wait for the client's acknowledgement.
        return b"".join((head(200, sum(map(len, pieces))), *pieces))

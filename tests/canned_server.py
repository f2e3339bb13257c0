"""A server of embeddings that answers at once: what is left of a measurement is the client.

``canned_server()`` runs it in a process of its own. It speaks as much of OpenAI's protocol as
emberd asks of a server before it uses it. A text's vector is one of a small pool, chosen by the
text, so that a vector that went to the wrong text shows; all are written as JSON beforehand, and
an answer is put together from pieces. ``expected(texts)`` has what the vectors must be.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import orjson

from server_process import server_process

MODEL: Final = "Qwen/Qwen3-Embedding-4B"
DIMENSIONS: Final = 2560

_POOL: Final = 256
_SEED: Final = 5
_CONTEXT_TOKENS: Final = 32_768
_END_OF_TEXT: Final = 151_643
_END_OF_HEAD: Final = b"\r\n\r\n"
_LENGTH: Final = b"content-length:"

Given = str | list[int]


@contextmanager
def canned_server(
    *,
    model: str = MODEL,
    dimensions: int = DIMENSIONS,
    floats: bool = False,
    sleep_s: float = 0.0,
    serial: bool = False,
) -> Iterator[str]:
    """Run a canned server while the context lasts, and give its URL.

    Args:
        model: The name of what it says it serves.
        dimensions: Length of its vectors.
        floats: It knows no base64 and sends numbers, whatever is asked for.
        sleep_s: How long it takes over each request of embeddings, in seconds.
        serial: It takes up one request after another.
    """
    options = ["--model", model, "--dimensions", str(dimensions), "--sleep", str(sleep_s)]
    options += [*(["--floats"] * floats), *(["--serial"] * serial)]
    with server_process(__file__, *options) as url:
        yield url


def expected(texts: Iterable[str], dimensions: int = DIMENSIONS) -> npt.NDArray[np.float32]:
    """Return the vectors of ``texts`` as they reach the server, ``(n, dimensions)``, float32."""
    return pool(dimensions)[[_place(text) for text in texts]]


@cache
def pool(dimensions: int) -> npt.NDArray[np.float32]:
    """Return all vectors that there are, each of norm one."""
    rows = np.random.default_rng(_SEED).standard_normal((_POOL, dimensions))
    units: npt.NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(
        np.float32
    )
    return units


def _place(given: Given) -> int:
    text = given if isinstance(given, str) else str(given)
    return zlib.crc32(text.encode()) % _POOL


def _tokens(given: Given) -> int:
    """One token a byte, and the one that ends a text."""
    return len(given.encode()) + 1 if isinstance(given, str) else len(given)


class Canned:
    """What the server answers.

    Args:
        model: What it says it serves.
        dimensions: Length of its vectors.
        floats: It sends numbers, whatever is asked for.
    """

    def __init__(self, model: str, dimensions: int, *, floats: bool) -> None:
        rows = pool(dimensions)
        self._model = model
        self._floats = [orjson.dumps(row.astype(np.float64).tolist()) for row in rows]
        packed = [b'"' + base64.b64encode(row.astype("<f4").tobytes()) + b'"' for row in rows]
        self._packed = self._floats if floats else packed
        self._entries: list[bytes] = []

    def answer(self, path: bytes, body: bytes | bytearray) -> tuple[bytes, list[bytes]]:
        """Return the status line's end, and the pieces of the body that answers a request."""
        match path:
            case b"/v1/embeddings":
                return b"200 OK", self._embeddings(orjson.loads(body))
            case b"/v1/models":
                entry = {"id": self._model, "object": "model", "owned_by": "sglang"}
                listed = [{**entry, "max_model_len": _CONTEXT_TOKENS}]
                return b"200 OK", [orjson.dumps({"object": "list", "data": listed})]
            case b"/model_info":
                named = {"model_path": self._model, "served_model_name": self._model}
                return b"200 OK", [orjson.dumps({**named, "is_generation": False})]
            case b"/v1/tokenize":
                ids = [*orjson.loads(body)["prompt"].encode(), _END_OF_TEXT]
                return b"200 OK", [orjson.dumps({"tokens": ids, "count": len(ids)})]
            case b"/health" | b"/ready" | b"/health_generate":
                return b"200 OK", [b"{}"]
        return b"404 Not Found", [b'{"detail":"Not Found"}']

    def _embeddings(self, request: dict[str, Any]) -> list[bytes]:
        given = request["input"]
        inputs: list[Given] = given if isinstance(given, list) else [given]
        vectors = self._packed if request.get("encoding_format") == "base64" else self._floats
        while len(self._entries) < len(inputs):
            index = len(self._entries)
            self._entries.append(b',{"object":"embedding","index":%d,"embedding":' % index)
        pieces = [b'{"object":"list","data":[']
        for index, text in enumerate(inputs):
            entry = self._entries[index]
            pieces += (entry if index else entry[1:], vectors[_place(text)], b"}")
        read = sum(map(_tokens, inputs))
        pieces.append(
            b'],"model":%b,"usage":{"prompt_tokens":%d,"total_tokens":%d}}'
            % (orjson.dumps(self._model), read, read)
        )
        return pieces


class Line:
    """When a request of embeddings is answered.

    Args:
        sleep_s: How long the server takes over one, in seconds.
        serial: It takes up one after another.
    """

    def __init__(self, sleep_s: float, *, serial: bool) -> None:
        self._sleep_s, self._serial, self._free_at = sleep_s, serial, 0.0

    def due(self, now: float) -> float:
        """Return when a request that came ``now`` is answered, on the loop's clock."""
        begun = max(now, self._free_at) if self._serial else now
        self._free_at = begun + self._sleep_s
        return self._free_at


class _Connection(asyncio.Protocol):
    """One connection, kept alive; its client sends one request after another."""

    def __init__(self, canned: Canned, line: Line) -> None:
        self._canned, self._line = canned, line
        self._buffer = bytearray()
        self._whole = 0  # length of the request at the head of the buffer, once it is known

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self._buffer:
            if not self._whole:
                self._measure()
            if not self._whole or len(self._buffer) < self._whole:
                return
            request, self._buffer = self._buffer[: self._whole], self._buffer[self._whole :]
            self._whole = 0
            self._respond(request)

    def _measure(self) -> None:
        end = self._buffer.find(_END_OF_HEAD)
        if end < 0:
            return
        head = bytes(self._buffer[:end]).lower()
        at = head.find(_LENGTH)
        length = 0 if at < 0 else int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0])
        self._whole = end + len(_END_OF_HEAD) + length

    def _respond(self, request: bytearray) -> None:
        path = bytes(request[: request.index(b"\r")]).split(b" ")[1]
        loop = asyncio.get_running_loop()
        now = loop.time()
        due = self._line.due(now) if path.endswith(b"/embeddings") else now
        if due > now:
            loop.call_at(due, self._send, path, request)
        else:
            self._send(path, request)

    def _send(self, path: bytes, request: bytearray) -> None:
        status, pieces = self._canned.answer(path, request[request.index(_END_OF_HEAD) + 4 :])
        head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        # In one piece: a small head of its own would wait for the client's acknowledgement.
        self._transport.write(b"".join((head % (status, sum(map(len, pieces))), *pieces)))


async def _serve(canned: Canned, line: Line) -> None:
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: _Connection(canned, line), "127.0.0.1", 0)
    print(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    listener.close()


def main() -> None:
    """Serve until the standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--dimensions", type=int, default=DIMENSIONS)
    parser.add_argument("--floats", action="store_true")
    parser.add_argument("--sleep", type=float, default=0.0)
    parser.add_argument("--serial", action="store_true")
    asked = parser.parse_args()
    canned = Canned(asked.model, asked.dimensions, floats=asked.floats)
    asyncio.run(_serve(canned, Line(asked.sleep, serial=asked.serial)))


if __name__ == "__main__":
    main()

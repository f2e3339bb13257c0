"""A server of embeddings with knobs: it answers as SGLang does, or wrongly in a chosen way.

It speaks HTTP over asyncio's streams, in a thread: a server framework would not let it break off in
the middle of a body, or reset a connection. Its vectors are a function of the text alone, so a test
can tell whose vector it got.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import sys
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self, cast

import numpy as np
import numpy.typing as npt

from emberd.endpoint import Endpoint
from server_process import server_process

MODEL: Final = "test/model"
QWEN: Final = "Qwen/Qwen3-Embedding-0.6B"
END_OF_TEXT: Final = 151643

Vector = npt.NDArray[np.float32]

_DRIP_PERIOD_S: Final = 0.05
_TURNS: Final = 10


def tokenize(text: str) -> list[int]:
    """One token a byte, and the end-of-text token."""
    return [*text.encode(), END_OF_TEXT]


def vector_of_ids(ids: Iterable[int], dimensions: int) -> Vector:
    seed = hashlib.sha256(json.dumps(list(ids)).encode()).digest()
    row = np.random.default_rng(np.frombuffer(seed, np.uint32)).standard_normal(dimensions)
    unit: Vector = (row / np.linalg.norm(row)).astype(np.float32)
    return unit


def vector_of(text: str, dimensions: int = 16) -> Vector:
    """The vector that the server gives for ``text``, normalised as exactly as float32 allows."""
    exact = vector_of_ids(tokenize(text), dimensions).astype(np.float64)
    unit: Vector = (exact / np.linalg.norm(exact)).astype(np.float32)
    return unit


def vectors_of(texts: Iterable[str], dimensions: int = 16) -> Vector:
    return np.stack([vector_of(text, dimensions) for text in texts])


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Answer:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


Route = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class FakeServer:
    """Knobs may be turned while it runs.

    ``fault`` spoils the answers to embeddings: missing, doubled, reordered, unindexed, short, nan,
    infinite, long_norm, zero, no_base64, odd_bytes, words, html, cut, text, no_data, drip,
    drip_head, drip_error, garbled, hang, reset, reset_late. ``first`` holds answers
    that are given before any other.
    """

    model: str = MODEL
    dimensions: int = 16
    context_tokens: int | None = 1000
    api_key: str | None = None
    fault: str | None = None
    first: deque[Answer] = field(default_factory=deque)
    floats: bool = False
    ignores_dimensions: bool = False
    cuts_without_normalising: bool = False
    has_tokenizer: bool = True
    status_without_route: int = 404
    closed: dict[str, int] = field(default_factory=dict)  # path -> status, as a gateway refuses it
    named: str | None = None  # what replies call the model, where it is not its name
    has_model_info: bool = True
    has_models: bool = True
    is_generation: bool = False
    end_of_text: int | None = END_OF_TEXT
    usage_off_by: int = 0
    deadly: str | None = None
    refuses: str | None = None  # a request that holds it, with status 400
    slow: str | None = None  # a request that holds it is never answered
    breaks: str | None = None  # the connection is broken off that brings it
    latency_s: float = 0.0
    overlap: int = 0  # nothing is answered until this many requests are in flight at once
    requests: list[Request] = field(default_factory=list)
    most_in_flight: int = 0
    deaths: int = 0
    weights: int = 0  # another number, other vectors

    def __post_init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop
        self._listener: asyncio.Server | None = None
        self._connections: set[asyncio.Transport] = set()
        self._in_flight = 0
        self._has_overlapped = asyncio.Event()
        self._started = threading.Event()
        self._stop: asyncio.Event
        self._thread = threading.Thread(target=self._run, name="fake-server", daemon=True)
        self.port = 0

    # ---- for tests

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(
            self.url, self.model, self.dimensions, self.context_tokens, self.api_key, "fake"
        )

    @property
    def embedded(self) -> list[list[Any]]:
        """The inputs of each embedding request so far."""
        return [request.body["input"] for request in self.to("/v1/embeddings")]

    def to(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path == path]

    def answer_first(self, *statuses: int, **headers: str) -> None:
        """Answer so many requests of embeddings with these statuses, in SGLang's form."""
        for status in statuses:
            shown = {name.replace("_", "-"): value for name, value in headers.items()}
            self.first.append(Answer(status, error_body(status, "try later"), shown))

    def die(self) -> None:
        """Go away as a killed process does: connections are reset, new ones refused."""
        asyncio.run_coroutine_threadsafe(self._die(), self._loop).result()

    def revive(self, port: int = 0) -> Endpoint:
        """Come back, on another port if none is given."""
        asyncio.run_coroutine_threadsafe(self._listen(port), self._loop).result()
        return self.endpoint

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    # ---- its life

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        await self._listen()
        self._started.set()
        await self._stop.wait()
        await self._die()

    async def _listen(self, port: int = 0) -> None:
        def protocol() -> asyncio.Protocol:
            return _Tracked(self._connections, self._connection)

        self._listener = await self._loop.create_server(protocol, "127.0.0.1", port)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def _die(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            # Accept no more before closing: asyncio loses a connection that it has accepted but
            # not made when its listener closes.
            for listening in listener.sockets:
                self._loop.remove_reader(listening.fileno())
        for _ in range(_TURNS):
            for transport in list(self._connections):
                transport.abort()
            await asyncio.sleep(0)
        if listener is not None:
            listener.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await _read(reader)) is not None:
                self.requests.append(request)
                await self._respond(request, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    async def _respond(self, request: Request, writer: asyncio.StreamWriter) -> None:
        if self.api_key and request.headers.get("authorization") != f"Bearer {self.api_key}":
            await send(writer, Answer(401, b'{"error":"Unauthorized"}'))
            return
        if request.path in self.closed:
            await send(writer, Answer(self.closed[request.path], b'{"error":"Forbidden"}'))
            return
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        if self._in_flight >= self.overlap > 0:
            self._has_overlapped.set()
        try:
            if self.overlap:
                await self._has_overlapped.wait()
            await asyncio.sleep(self.latency_s)
            await self.routes().get(request.path, _not_found)(request, writer)
        finally:
            self._in_flight -= 1

    # ---- its routes

    def routes(self) -> dict[str, Route]:
        """What it answers; servers of other kinds have others."""
        return {
            "/v1/embeddings": self._embeddings,
            "/v1/tokenize": self._tokenize,
            "/v1/models": self._models,
            "/model_info": self._model_info,
        }

    async def _models(self, request: Request, writer: asyncio.StreamWriter) -> None:
        if not self.has_models:
            await _not_found(request, writer)
            return
        entry: dict[str, Any] = {"id": self.model, "object": "model", "owned_by": "sglang"}
        if self.context_tokens is not None:
            entry["max_model_len"] = self.context_tokens
        await send_json(writer, {"object": "list", "data": [entry]})

    async def _model_info(self, request: Request, writer: asyncio.StreamWriter) -> None:
        if not self.has_model_info:
            await _not_found(request, writer)
            return
        await send_json(
            writer,
            {
                "model_path": self.model,
                "served_model_name": self.model,
                "is_generation": self.is_generation,
            },
        )

    async def _tokenize(self, request: Request, writer: asyncio.StreamWriter) -> None:
        if not self.has_tokenizer:
            await send(writer, Answer(self.status_without_route, b'{"detail":"No such route"}'))
            return
        ids = self._ids(request.body["prompt"])
        await send_json(
            writer, {"tokens": ids, "count": len(ids), "max_model_len": self.context_tokens}
        )

    async def _embeddings(self, request: Request, writer: asyncio.StreamWriter) -> None:
        if self.first:
            await send(writer, self.first.popleft())
            return
        inputs = request.body["input"]
        if _holds(inputs, self.deadly):
            self.deaths += 1
            await self._die()
            return
        hangs = self.fault == "hang" or _holds(inputs, self.slow)
        if hangs or self.fault == "reset" or _holds(inputs, self.breaks):
            if hangs:
                await asyncio.get_running_loop().create_future()
            writer.transport.abort()
            return
        refusal = self._refusal(inputs)
        if refusal is not None:
            await send(writer, Answer(400, error_body(400, refusal)))
            return
        await self._send_vectors(self._reply(request.body, inputs), writer)

    # ---- its answers

    def _ids(self, given: str | list[int]) -> list[int]:
        if isinstance(given, list):
            return given
        return [*given.encode(), *([] if self.end_of_text is None else [self.end_of_text])]

    def _refusal(self, inputs: list[str | list[int]]) -> str | None:
        for index, given in enumerate(inputs):
            if self.refuses and isinstance(given, str) and self.refuses in given:
                return "It cannot be read"
            if isinstance(given, str) and not given.strip():
                return f"Input at index {index} cannot be empty or whitespace only"
            length = len(self._ids(given))
            if self.context_tokens and length >= self.context_tokens:
                return (
                    f"The input ({length} tokens) is longer than the model's context length "
                    f"({self.context_tokens} tokens)."
                )
        return None

    def _reply(self, body: dict[str, Any], inputs: list[Any]) -> dict[str, Any]:
        inputs_seen = ([*self._ids(given), *[0] * self.weights] for given in inputs)
        rows = [vector_of_ids(ids, self.dimensions) for ids in inputs_seen]
        wanted = body.get("dimensions")
        if wanted and not self.ignores_dimensions:
            rows = [row[:wanted] for row in rows]
            if not self.cuts_without_normalising:
                rows = [row / np.float32(np.linalg.norm(row)) for row in rows]
        packed = body.get("encoding_format") == "base64" and not self.floats
        data = [
            {"object": "embedding", "index": index, "embedding": _encode(row, packed)}
            for index, row in enumerate(map(self._spoil_vector, rows))
        ]
        read = sum(len(self._ids(given)) for given in inputs) + self.usage_off_by
        usage = {"prompt_tokens": read, "total_tokens": read}
        return {
            "object": "list",
            "data": self._spoil_list(data),
            "model": self.named or self.model,
            "usage": usage,
        }

    def _spoil_vector(self, row: Vector) -> Vector:
        spoilt = row.copy()
        match self.fault:
            case "nan":
                spoilt[1] = np.nan
            case "infinite":
                spoilt[1] = np.inf
            case "long_norm":
                spoilt *= 3
            case "zero":
                spoilt *= 0
            case "short":
                spoilt = spoilt[:-1]
        return spoilt

    def _spoil_list(self, data: list[dict[str, Any]]) -> Any:
        match self.fault:
            case "missing":
                return data[:-1]
            case "doubled":
                return [*data[:-1], {**data[-1], "index": 0}] if len(data) > 1 else data * 2
            case "reordered":
                return data[::-1]
            case "unindexed":
                return [{"embedding": entry["embedding"]} for entry in data]
            case "no_base64":
                return [{**entry, "embedding": "***"} for entry in data]
            case "odd_bytes":
                return [{**entry, "embedding": "AAAAAAA="} for entry in data]
            case "words":
                return [{**entry, "embedding": ["a", "b"]} for entry in data]
            case "no_data":
                return None
        return data

    async def _send_vectors(self, reply: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        body = json.dumps(reply).encode()
        match self.fault:
            case "html":
                await send(writer, Answer(200, b"<!doctype html><h1>Welcome to nginx!</h1>"))
            case "text":
                await send(writer, Answer(200, b"OK"))
            case "cut":
                await send(writer, Answer(200, body[: len(body) // 2]))
            case "reset_late":
                writer.write(_head(200, len(body), {}) + body[: len(body) // 2])
                await writer.drain()
                writer.transport.abort()
            case "drip":
                writer.write(_head(200, len(body), {}))
                await _drip(writer, body)
            case "drip_head":
                await _drip(writer, _head(200, len(body), {"x-padding": "." * len(body)}))
            case "drip_error":
                writer.write(_head(400, len(body), {}))
                await _drip(writer, body)
            case "garbled":
                await send(writer, Answer(200, body, {"content-encoding": "gzip"}))
            case _:
                await send(writer, Answer(200, body))


class _Tracked(asyncio.StreamReaderProtocol):
    """Keeps a set of the connections that there are, from their first moment to their last."""

    def __init__(self, connections: set[asyncio.Transport], handler: Callable[..., Any]) -> None:
        super().__init__(asyncio.StreamReader(), handler)
        self._connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connection = cast("asyncio.Transport", transport)
        self._connections.add(self._connection)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self._connection)
        super().connection_lost(exc)


def _holds(inputs: list[Any], word: str | None) -> bool:
    return bool(word) and any(isinstance(text, str) and str(word) in text for text in inputs)


def _encode(row: Vector, packed: bool) -> Any:
    return base64.b64encode(row.astype("<f4").tobytes()).decode() if packed else row.tolist()


def error_body(status: int, message: str) -> bytes:
    return json.dumps(
        {"object": "error", "message": message, "type": "Error", "param": None, "code": status}
    ).encode()


async def _not_found(request: Request, writer: asyncio.StreamWriter) -> None:
    await send(writer, Answer(404, b'{"detail":"Not Found"}'))


async def _drip(writer: asyncio.StreamWriter, data: bytes) -> None:
    for byte in data:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(_DRIP_PERIOD_S)


async def send_json(writer: asyncio.StreamWriter, body: Any) -> None:
    await send(writer, Answer(200, json.dumps(body).encode()))


async def send(writer: asyncio.StreamWriter, answer: Answer) -> None:
    writer.write(_head(answer.status, len(answer.body), answer.headers) + answer.body)
    await writer.drain()


def _head(status: int, length: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Status", "content-type: application/json"]
    lines += [f"content-length: {length}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.split("\r\n")
    method, path, _ = first.split(" ")
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    headers = {name.strip().lower(): value.strip() for name, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, path, headers, json.loads(body) if body else None)


@contextmanager
def fake_server_process(model: str, dimensions: int) -> Iterator[str]:
    """Run a ``FakeServer`` in a process of its own while the context lasts, and give its URL."""
    with server_process(__file__, model, str(dimensions)) as url:
        yield url


if __name__ == "__main__":
    with FakeServer(
        model=sys.argv[1], dimensions=int(sys.argv[2]), context_tokens=32_768
    ) as running:
        print(running.url, flush=True)
        sys.stdin.read()

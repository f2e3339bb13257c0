"""A server of embeddings with knobs: it answers as SGLang does, or wrongly in a chosen way."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from emberd.catalog import MODELS
from emberd.endpoint import Endpoint
from http_server import (
    Answer,
    HttpServer,
    Request,
    drip,
    embeddings,
    head,
    model_info,
    models,
    reply,
)

MODEL: Final = "test/model"
QWEN: Final = "Qwen/Qwen3-Embedding-0.6B"
END_OF_TEXT: Final = 151643

Vector = npt.NDArray[np.float32]

_CARDS: Final = {model.dimensions: model.reference for model in MODELS if model.reference}


def tokenize(text: str) -> list[int]:
    """One token a byte, and the end-of-text token."""
    return [*text.encode(), END_OF_TEXT]


def vector_of_ids(ids: Iterable[int], dimensions: int) -> Vector:
    ids = list(ids)
    seed = hashlib.sha256(json.dumps(ids).encode()).digest()
    row = np.random.default_rng(np.frombuffer(seed, np.uint32)).standard_normal(dimensions)
    unit: Vector = (row / np.linalg.norm(row)).astype(np.float32)
    return as_on_card(bytes(each for each in ids if each < 256), unit)


def as_on_card(text: bytes, unit: Vector) -> Vector:
    """Turn the vector of a text of a model card so that it has the similarities of the card.

    Models with printed similarities have different dimensions, which tell the card.
    """
    card = _CARDS.get(len(unit))
    place = [each.encode() for each in (*card.queries, *card.documents)] if card else []
    if card is None or text not in place:
        return unit
    number, queries = place.index(text), len(card.queries)
    turned = np.zeros(len(unit), np.float32)
    if number < queries:
        turned[number] = 1
        return turned
    turned[queries:] = unit[queries:] / np.linalg.norm(unit[queries:])
    shares = np.array([row[number - queries] for row in card.similarities], np.float32)
    turned *= np.sqrt(1 - shares @ shares)
    turned[:queries] = shares
    return turned


def vector_of(text: str, dimensions: int = 16) -> Vector:
    """The vector that the server gives for ``text``, normalised as exactly as float32 allows."""
    exact = vector_of_ids(tokenize(text), dimensions).astype(np.float64)
    unit: Vector = (exact / np.linalg.norm(exact)).astype(np.float32)
    return unit


def vectors_of(texts: Iterable[str], dimensions: int = 16) -> Vector:
    return np.stack([vector_of(text, dimensions) for text in texts])


# The faults, by what they spoil: a vector, the list of entries, the whole reply. Those of the last
# kind send one part at once and another byte by byte, and then break the connection off.
_VECTORS: Final[dict[str, Callable[[Vector], Vector]]] = {
    "nan": lambda row: np.append(row[:-1], np.float32("nan")),
    "infinite": lambda row: np.append(row[:-1], np.float32("inf")),
    "long_norm": lambda row: row * 3,
    "zero": lambda row: row * 0,
    "short": lambda row: row[:-1],
}
_LISTS: Final[dict[str, Callable[[list[dict[str, Any]]], Any]]] = {
    "missing": lambda data: data[:-1],
    "doubled": lambda data: [*data[:-1], {**data[-1], "index": 0}] if len(data) > 1 else data * 2,
    "reordered": lambda data: data[::-1],
    "unindexed": lambda data: [{"embedding": entry["embedding"]} for entry in data],
    "no_base64": lambda data: [{**entry, "embedding": "***"} for entry in data],
    "odd_bytes": lambda data: [{**entry, "embedding": "AAAAAAA="} for entry in data],
    "words": lambda data: [{**entry, "embedding": ["a", "b"]} for entry in data],
    "no_data": lambda data: None,
}
_REPLIES: Final[dict[str, Callable[[bytes], bytes]]] = {
    "html": lambda body: reply(200, b"<!doctype html><h1>Welcome to nginx!</h1>"),
    "text": lambda body: reply(200, b"OK"),
    "cut": lambda body: reply(200, body[: len(body) // 2]),
    "garbled": lambda body: reply(200, body, {"content-encoding": "gzip"}),
}
_PARTS: Final[dict[str, Callable[[bytes], tuple[bytes, bytes]]]] = {
    "reset": lambda body: (b"", b""),
    "reset_late": lambda body: (head(200, len(body)) + body[: len(body) // 2], b""),
    "drip": lambda body: (head(200, len(body)), body),
    "drip_head": lambda body: (b"", head(200, len(body), {"x-padding": "." * len(body)})),
    "drip_error": lambda body: (head(400, len(body)), body),
}


@dataclass
class FakeServer(HttpServer):
    """Knobs may be turned while it runs."""

    model: str = MODEL
    dimensions: int = 16
    context_tokens: int | None = 1000
    api_key: str | None = None
    fault: str | None = None  # hang, or one of the tables above
    first: deque[bytes] = field(default_factory=deque)  # replies to embeddings before any other
    limit_after: int | None = None  # so many embedding requests are answered, and no others
    status_of_limit: int = 429
    floats: bool = False
    ignores_dimensions: bool = False
    cuts_without_normalising: bool = False
    has_tokenizer: bool = True
    status_without_route: int = 404
    auto_truncate: bool | None = False  # --allow-auto-truncate; None: /server_info is closed
    closed: dict[str, int] = field(default_factory=dict)  # path -> status, as a gateway refuses it
    named: str | None = None  # what replies call the model, where it is not its name
    has_model_info: bool = True
    has_models: bool = True
    is_generation: bool = False
    end_of_text: int | None = END_OF_TEXT
    usage_off_by: int = 0
    deadly: str | None = None
    most_texts: int | None = None  # a request with more gets status 413
    refuses: str | None = None  # a request that holds it, with status 400
    slow: str | None = None  # a request that holds it is never answered
    breaks: str | None = None  # the connection is broken off that brings it
    latency_s: float = 0.0
    overlap: int = 0  # nothing is answered until this many requests were in flight at once
    deaths: int = 0
    weights: int = 0  # another number, other vectors

    def __post_init__(self) -> None:
        super().__init__(self._respond)

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(
            self.url,
            self.model,
            self.dimensions,
            self.context_tokens,
            self.api_key,
            "fake",
            counts_exactly=True,
        )

    @property
    def embedded(self) -> list[list[Any]]:
        """The inputs of each embedding request so far."""
        return [request.body["input"] for request in self.to("/v1/embeddings")]

    def answer_first(self, *statuses: int, **headers: str) -> None:
        """Answer so many requests of embeddings with these statuses, in SGLang's form."""
        shown = {name.replace("_", "-"): value for name, value in headers.items()}
        self.first.extend(refusal(status, "try later", shown) for status in statuses)

    def revive(self, port: int = 0) -> Endpoint:
        """Come back after its death, on another port if none is given."""
        self.listen(port)
        return self.endpoint

    # ---- its routes

    def routes(self) -> dict[str, Answer]:
        """What it answers; servers of other kinds have others."""
        return {
            "/v1/embeddings": self._embeddings,
            "/v1/tokenize": self._tokenize,
            "/v1/models": self._models,
            "/model_info": self._model_info,
            **({} if self.auto_truncate is None else {"/server_info": self._server_info}),
        }

    def _respond(self, request: Request, connection: socket.socket) -> bytes:
        if not request.has_key(self.api_key):
            return reply(401, {"error": "Unauthorized"})
        if request.path in self.closed:
            return reply(self.closed[request.path], {"error": "Forbidden"})
        if self.overlap and request.content:
            with self.changed:
                self.changed.wait_for(lambda: self.most_in_flight >= self.overlap)
        if self.latency_s:
            time.sleep(self.latency_s)
        return self.routes().get(request.path, _not_found)(request, connection)

    def _models(self, request: Request, connection: socket.socket) -> bytes:
        if not self.has_models:
            return _not_found(request, connection)
        return reply(200, models(self.model, self.context_tokens))

    def _model_info(self, request: Request, connection: socket.socket) -> bytes:
        if not self.has_model_info:
            return _not_found(request, connection)
        return reply(200, model_info(self.model, is_generation=self.is_generation))

    def _server_info(self, request: Request, connection: socket.socket) -> bytes:
        told = {"allow_auto_truncate": self.auto_truncate}
        return reply(200, {**told, "max_req_input_len": (self.context_tokens or 0) - 6})

    def _tokenize(self, request: Request, connection: socket.socket) -> bytes:
        if not self.has_tokenizer:
            return reply(self.status_without_route, {"detail": "No such route"})
        ids = self._ids(request.body["prompt"])
        read = {"tokens": ids, "count": len(ids), "max_model_len": self.context_tokens}
        return reply(200, read)

    def _embeddings(self, request: Request, connection: socket.socket) -> bytes:
        with contextlib.suppress(IndexError):
            return self.first.popleft()
        if self.limit_after is not None and len(self.embedded) > self.limit_after:
            return refusal(self.status_of_limit, "try later")
        inputs = request.body["input"]
        if self.most_texts is not None and len(inputs) > self.most_texts:
            return refusal(413, f"at most {self.most_texts} texts")
        self._fail(inputs, connection)
        if (said := self._refusal(inputs)) is not None:
            return refusal(400, said)
        body = json.dumps(self._reply(request.body, inputs)).encode()
        if self.fault in _PARTS:
            at_once, slowly = _PARTS[self.fault](body)
            connection.sendall(at_once)
            drip(connection, (bytes([byte]) for byte in slowly))
            raise ConnectionError
        answer = _REPLIES.get(self.fault or "")
        return reply(200, body) if answer is None else answer(body)

    # ---- its answers

    def _fail(self, inputs: list[Any], connection: socket.socket) -> None:
        """Break the connection off, now or later, if a text or a knob says so."""
        if _holds(inputs, self.deadly):
            with self.changed:
                if connection in self._connections:  # or it ended with an earlier death
                    self.deaths += 1
                    self.die()
            raise ConnectionError
        if self.fault == "hang" or _holds(inputs, self.slow):
            connection.recv(1)  # until the client closes the connection, or the server dies
            raise ConnectionError
        if _holds(inputs, self.breaks):
            raise ConnectionError

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
            if self.context_tokens and length >= self.context_tokens and not self.auto_truncate:
                return (
                    f"The input ({length} tokens) is longer than the model's context length "
                    f"({self.context_tokens} tokens)."
                )
        return None

    def _reply(self, body: dict[str, Any], inputs: list[Any]) -> dict[str, Any]:
        read = [self._ids(given)[: self._kept()] for given in inputs]
        rows = [self._vector([*ids, *[0] * self.weights], body.get("dimensions")) for ids in read]
        packed = body.get("encoding_format") == "base64" and not self.floats
        vectors = [_encode(_VECTORS.get(self.fault or "", np.array)(row), packed) for row in rows]
        tokens = sum(map(len, read)) + self.usage_off_by
        whole = embeddings(self.named or self.model, vectors, tokens)
        return {**whole, "data": _LISTS.get(self.fault or "", list)(whole["data"])}

    def _kept(self) -> int | None:
        """After how many tokens it cuts a text, its end-of-text token included."""
        return self.context_tokens - 6 if self.auto_truncate and self.context_tokens else None

    def _vector(self, ids: list[int], wanted: int | None) -> Vector:
        row = vector_of_ids(ids, self.dimensions)
        if not wanted or self.ignores_dimensions:
            return row
        cut = row[:wanted]
        return cut if self.cuts_without_normalising else cut / np.float32(np.linalg.norm(cut))


def refusal(status: int, message: str, headers: dict[str, str] | None = None) -> bytes:
    """Return an error in SGLang's form."""
    error = {"object": "error", "message": message, "type": "Error", "param": None, "code": status}
    return reply(status, error, headers)


def _not_found(request: Request, connection: socket.socket) -> bytes:
    return reply(404, {"detail": "Not Found"})


def _holds(inputs: list[Any], word: str | None) -> bool:
    return bool(word) and any(isinstance(text, str) and str(word) in text for text in inputs)


def _encode(row: Vector, packed: bool) -> Any:
    return base64.b64encode(row.astype("<f4").tobytes()).decode() if packed else row.tolist()

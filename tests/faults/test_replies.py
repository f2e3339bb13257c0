"""Mutated replies: whatever a server sends, the result is right vectors or an ``EmberdError``.

``FAULTS_SEED=123 pytest tests/faults/test_replies.py -s`` starts with that seed.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import os
import random
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import pytest

from emberd.client import wire
from emberd.client.event_loops import finish
from emberd.client.loopback import LoopbackSession
from emberd.client.transport import AsyncTransport, Session
from emberd.client.vectors import decode
from emberd.client.wire import Reply, Request, TransportError
from emberd.endpoint import Endpoint
from emberd.errors import EmberdError
from fake_server import MODEL, vectors_of
from faults.scale import scale
from http_server import HttpServer
from http_server import Request as Asked

_TEXTS: Final = ["a", "bc", "def"]
_DIMENSIONS: Final = 16
_TIMEOUT_S: Final = 2.0
_BOUND_S: Final = 30.0
_SEED: Final = int(os.environ.get("FAULTS_SEED", random.SystemRandom().randrange(1 << 32)))
_RIGHT: Final = vectors_of(_TEXTS, _DIMENSIONS)

_TOKENS: Final = [
    *(b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-0", b"null", b"true", b"{}", b"[]", b'""'),
    *(b"99999999999999999999", b"-1", b"0.5", b'"AAAA"', b'"\\u0000"', b'"\\ud800"', b"\xff\xfe"),
    *(b"[" * 2000, b'{"a":' * 2000, b'"index":0,', b'"embedding":[0.1],', b" " * 999, b"\x00"),
]


def _body(chance: random.Random) -> bytes:
    """Return a right reply, in one of the forms that servers send."""
    packed = chance.random() < 0.6
    entries: list[dict[str, Any]] = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode()
            if packed
            else row.astype(float).tolist(),
        }
        for index, row in enumerate(_RIGHT)
    ]
    reply = {"object": "list", "data": entries, "model": MODEL, "usage": {"prompt_tokens": 9}}
    return json.dumps(reply, indent=chance.choice([None, None, 1])).encode()


def _reordered(chance: random.Random) -> bytes:
    """Return a right reply whose fields and entries are in another order, with others added."""
    reply = json.loads(_body(chance))
    chance.shuffle(reply["data"])
    entries = []
    for entry in reply["data"]:
        fields = [*entry.items(), ("more", chance.choice([None, [1], {"index": 7}, "x" * 99]))]
        chance.shuffle(fields)
        entries.append(dict(fields))
    shuffled = list({**reply, "data": entries, "created": 1, "id": None}.items())
    chance.shuffle(shuffled)
    return json.dumps(dict(shuffled)).encode()


def _mutated(chance: random.Random, content: bytes) -> bytes:
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        at = chance.randrange(len(content) + 1)
        to = min(len(content), at + chance.choice([1, 1, 4, 40, 400]))
        match chance.randrange(8):
            case 0:
                content = content[:at] + bytes([chance.randrange(256)]) + content[at + 1 :]
            case 1:
                content = content[:at] + content[to:]
            case 2:
                content = content[:at] + content[at:to] * chance.choice([2, 3]) + content[to:]
            case 3:
                content = content[:at] + chance.choice(_TOKENS) + content[at:]
            case 4:
                content = content[:at] + chance.choice(_TOKENS) + content[to:]
            case 5:
                content = content[:at]
            case 6:
                other = chance.randrange(len(content) + 1)
                content = content[:at] + content[other : other + (to - at)] + content[to:]
            case _:
                content = content.replace(
                    *chance.choice(
                        [(b'"index"', b'"Index"'), (b"0", b"1"), (b"[", b"{"), (b",", b"")]
                    )
                )
        content = content or b"?"
    return content


def _check(body: bytes) -> bool:
    """Return whether ``body`` was accepted; only right vectors may be."""
    try:
        found = finish(wire.read_embeddings(body, len(_TEXTS), _DIMENSIONS))
        vectors = finish(decode(found.vectors, _DIMENSIONS, None, cut_by_server=False))
    except EmberdError:
        return False
    # A changed digit of a number cannot be seen; everything that can be seen is right.
    assert vectors.shape == _RIGHT.shape
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    return True


def test_mutated_bodies_give_unit_vectors_or_an_error_of_ours() -> None:
    count, accepted, begin_s = scale(10_000, 1_000_000), 0, time.monotonic()
    for number in range(count):
        chance = random.Random(_SEED + number)
        body = _mutated(chance, _body(chance))
        try:
            accepted += _check(body)
        except BaseException as error:
            error.add_note(f"FAULTS_SEED={_SEED + number}: {body[:2000]!r}")
            raise
    seconds = time.monotonic() - begin_s
    print(f"\nseed {_SEED}: {count:,} bodies in {seconds:.1f} s, {accepted:,} accepted")


def test_other_orders_and_more_fields_give_the_right_vectors() -> None:
    for number in range(scale(300, 20_000)):
        chance = random.Random(_SEED + number)
        found = finish(wire.read_embeddings(_reordered(chance), len(_TEXTS), _DIMENSIONS))
        vectors = finish(decode(found.vectors, _DIMENSIONS, None, cut_by_server=False))
        assert np.array_equal(vectors, _RIGHT), _SEED + number


def _reply(chance: random.Random) -> Iterator[bytes]:
    """Yield the pieces of a reply whose head or body, or both, are wrong."""
    body = _body(chance)
    if chance.random() < 0.5:
        body = _mutated(chance, body)
    headers = [b"content-type: application/json"]
    match chance.randrange(10):
        case 0:
            body = gzip.compress(body)
            headers.append(b"content-encoding: gzip")
        case 1:
            body = zlib.compress(body)[: chance.randrange(1, 99)]
            headers.append(
                b"content-encoding: " + chance.choice([b"deflate", b"br", b"zstd", b"?"])
            )
        case 2:
            headers.append(b"location: http://127.0.0.1:9/stolen")
        case 3:
            headers += [b"x-%d: y" % n for n in range(chance.choice([50, 150]))]
        case 4:
            headers.append(
                b"content-length: " + chance.choice([b"0", b"5", b"-1", b"x", b"9" * 20])
            )
    status = chance.choice(
        [b"200 OK"] * 8 + [b"302 Found", b"204 No", b"429 Busy", b"999 ?", b"abc"]
    )
    if chance.random() < 0.3:
        size = chance.choice([1, 7, 100, 10_000])
        parts = [body[start : start + size] for start in range(0, len(body), size)][:2000]
        sizes = [b"%x" % len(part) for part in parts]
        if chance.random() < 0.5:
            sizes[chance.randrange(len(sizes))] = chance.choice(
                [b"ffffffffffffffff", b"-5", b"zz", b""]
            )
        chunks = zip(sizes, parts, strict=True)
        body = b"".join(size + b"\r\n" + part + b"\r\n" for size, part in chunks) + b"0\r\n\r\n"
        headers.append(b"transfer-encoding: chunked")
    else:
        headers.append(b"content-length: %d" % (len(body) + chance.choice([0] * 8 + [-3, 9])))
    head = b"\r\n".join([b"HTTP/1.1 " + status, *headers, b"", b""])
    if chance.random() < 0.2:
        head = _mutated(chance, head)
    if chance.random() < 0.1:
        head = b"HTTP/1.1 100 Continue\r\n\r\n" * chance.choice([1, 3]) + head
    whole = head + body
    step = chance.choice([len(whole)] * 4 + [1000, 100])
    yield from (whole[start : start + step] for start in range(0, len(whole), step))


def _by_thread(endpoint: Endpoint, request: Request) -> Reply | TransportError:
    return LoopbackSession(endpoint, _TIMEOUT_S).send(request)


def _by_sdk(endpoint: Endpoint, request: Request) -> Reply | TransportError:
    return Session.open(endpoint, 1, _TIMEOUT_S).send(request)


def _by_task(endpoint: Endpoint, request: Request) -> Reply | TransportError:
    async def send() -> Reply | TransportError:
        session = await AsyncTransport(1, _TIMEOUT_S).session(endpoint)
        return await session.send(request)

    return asyncio.run(send())


@pytest.mark.parametrize("send", [_by_thread, _by_sdk, _by_task])
def test_a_status_without_content_may_come_with_chunks_of_a_wrong_size(
    send: Callable[[Endpoint, Request], Reply | TransportError],
) -> None:
    """``http.client`` sets the length of such a reply to zero, and raises ValueError if read."""

    def answer(asked: Asked, connection: socket.socket) -> bytes:
        return b"HTTP/1.1 204 No\r\ntransfer-encoding: chunked\r\n\r\n-5\r\nab\r\n0\r\n\r\n"

    with HttpServer(answer) as server:
        endpoint = Endpoint(server.url, MODEL, _DIMENSIONS)
        reply = send(endpoint, wire.embed_request(MODEL, list(_TEXTS), None))
    assert isinstance(reply, Reply | TransportError)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("send", [_by_thread, _by_sdk, _by_task])
def test_mutated_replies_over_a_socket_give_unit_vectors_or_an_error_of_ours(
    send: Callable[[Endpoint, Request], Reply | TransportError],
) -> None:
    chance = random.Random()

    def answer(asked: Asked, connection: socket.socket) -> bytes:
        assert asked.path == "/v1/embeddings"
        for piece in _reply(chance):
            connection.sendall(piece)
        raise ConnectionError  # ends the connection, so that a reply that is too short is no wait

    request = wire.embed_request(MODEL, list(_TEXTS), None, native=_DIMENSIONS)
    count, accepted, begin_s = scale(100, 10_000), 0, time.monotonic()
    with HttpServer(answer) as server:
        endpoint = Endpoint(server.url, MODEL, _DIMENSIONS, api_key="secret")
        for number in range(count):
            chance.seed(_SEED + number)
            started_s = time.monotonic()
            try:
                reply = send(endpoint, request)
                if isinstance(reply, Reply) and reply.status == 200:
                    accepted += _check(reply.body)
            except EmberdError:
                pass
            except BaseException as error:
                error.add_note(f"FAULTS_SEED={_SEED + number}")
                raise
            assert time.monotonic() - started_s < _BOUND_S, _SEED + number
        assert len(server.requests) == count  # no redirect was followed, and none was sent again
    seconds = time.monotonic() - begin_s
    print(f"\nseed {_SEED}: {count:,} replies in {seconds:.1f} s, {accepted:,} accepted")

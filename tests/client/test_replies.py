from __future__ import annotations

import base64
import itertools
import json
import struct
from typing import Any

import pytest

from emberd.client import wire
from emberd.client.event_loops import finish
from emberd.client.wire import Embeddings, prompt_tokens
from emberd.errors import BadReplyError

_WITH_A_SLASH = struct.unpack("<2f", b"\xff" * 3 + b"\x3f" * 5)


def read_embeddings(body: bytes, count: int) -> Embeddings:
    return finish(wire.read_embeddings(body, count))


def _body(*entries: Any) -> bytes:
    return json.dumps({"data": entries}).encode()


def _entry(index: Any, embedding: Any = (0.5,)) -> dict[str, Any]:
    return {"index": index, "embedding": list(embedding)}


def test_vectors_come_in_the_order_of_their_index() -> None:
    found = read_embeddings(_body(_entry(1, [1.0]), _entry(0, [2.0])), 2).vectors
    assert found == [struct.pack("<f", 2.0), struct.pack("<f", 1.0)]


def test_base64_is_unpacked_to_its_bytes() -> None:
    packed = struct.pack("<2f", 0.5, -1)
    body = _body({"index": 0, "embedding": base64.b64encode(packed).decode()})
    assert read_embeddings(body, 1).vectors == [packed]


def test_floats_give_the_bytes_that_base64_gives() -> None:
    numbers = [0.6, 0.8, -1e-30, 1.0]
    packed = struct.pack("<4f", *numbers)
    coded = _body({"index": 0, "embedding": base64.b64encode(packed).decode()})
    assert read_embeddings(_body(_entry(0, numbers)), 1).vectors == [packed]
    assert read_embeddings(coded, 1).vectors == [packed]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (_body(_entry(0)), "1 vectors for 2 texts"),
        (_body(_entry(0), _entry(1), _entry(2)), "more than 2 vectors for 2 texts"),
        (_body(_entry(0), _entry(0)), "two vectors for text 0"),
        (_body(_entry(0), _entry(2)), "index 2; valid indices are 0 to 1"),
        (_body(_entry(0), _entry(-1)), "index -1"),
        (_body(_entry(0), _entry(None)), "index None"),
        (_body(_entry(0), _entry(True)), "index True"),
        (_body(_entry(0), _entry("1")), "index '1'"),
        (_body(_entry(0), "vector"), "index None"),
        (_body(_entry(0), {"index": 1, "embedding": "***"}), "Vector 1 .* neither base64"),
        (_body(_entry(0), {"index": 1, "embedding": "AAAAAAA="}), "neither base64"),
        (_body(_entry(0), {"index": 1}), "neither base64"),
        (_body(_entry(0), _entry(1, ["0.6"])), "neither base64 .* nor a list of numbers"),
        (_body(_entry(0), _entry(1, [True])), "neither base64"),
        (_body(_entry(0), _entry(1, [1.0, None])), "neither base64"),
        (_body(_entry(0), _entry(1, [[1.0]])), "neither base64"),
        (_body(_entry(0), _entry(1, [10**400])), "neither base64"),
        (b"[" * 60_000, "is not JSON"),
        (b'{"data": ' + b"[" * 60_000, "breaks off"),
        (b"[" * 1_000_000, "more than 2 vectors in it"),
        (_body(_entry(0), {**_entry(1), "usage": _entry(2)}), "more than 2 vectors"),
        (_body(_entry(0), {"index": 1, "usage": _entry(2)}), "neither base64"),
        (_body(_entry(0))[:-2] + b', {"index": 1, "embedding": "A', "breaks off"),
        (b'{"error": "no"}', "without a list of vectors"),
        (b"[]", "without a list of vectors"),
        (b"<html>Welcome", "page of HTML"),
        (b'{"data": [{"ind', "breaks off after 15 bytes"),
        (b"OK", "2 bytes is not JSON: 'OK'"),
        (b"", "0 bytes is not JSON"),
        (b"\xff\xfe", "is not JSON"),
    ],
)
def test_what_is_not_asked_for_is_an_error(body: bytes, said: str) -> None:
    with pytest.raises(BadReplyError, match=said) as caught:
        read_embeddings(body, 2)
    assert "Nothing of this reply is used" in str(caught.value)


def test_white_space_escapes_and_other_fields_do_not_matter() -> None:
    packed = struct.pack("<2f", *_WITH_A_SLASH)
    escaped = base64.b64encode(packed).decode().replace("/", "\\/")
    assert "\\/" in escaped
    body = (
        '{ "object": "embedding", "note": "\\"embedding\\": [1]",\n'
        '"data" :\t[{"object":"embedding",'
        f'"embedding" \r\n : "{escaped}", "more": {{"embedding": {{}}}}, "index" : 0 }}]}}'
    )
    assert read_embeddings(body.encode(), 1).vectors == [packed]


@pytest.mark.parametrize(
    ("reply", "tokens"),
    [
        ({"usage": {"prompt_tokens": 5}}, 5),
        ({"usage": {"prompt_tokens": True}}, None),
        ({"usage": None}, None),
        ({}, None),
        ([], None),
    ],
)
def test_tokens_read_are_told_where_the_server_tells(reply: Any, tokens: int | None) -> None:
    assert prompt_tokens(json.dumps(reply).encode()) == tokens


def test_the_model_that_a_reply_names_is_told() -> None:
    assert read_embeddings(b'{"data": [], "model": "a/b"}', 0).model == "a/b"
    assert read_embeddings(b'{"data": [], "model": 7}', 0).model is None


def test_vectors_from_another_place_than_the_data_are_not_used() -> None:
    first, second = (base64.b64encode(struct.pack("<f", x)).decode() for x in (0.5, 0.25))
    escaped = r'"\u0065mbedding":""'
    for text in (
        f'{{"usage":{{"embedding":"{second}"}},"data":[{{{escaped},"index":0}}]}}',
        f'{{"data":[{{"embedding":"{first}",{escaped},"index":0}}]}}',
        f'{{"data":[{{"embedding":"{first}","embedding":"{second}","index":0}}]}}',
    ):
        with pytest.raises(BadReplyError):
            read_embeddings(text.encode(), 1)
    two = f'{{"data":[{{"embedding":"{first}","embedding":"{second}","index":0}},'
    with pytest.raises(BadReplyError):
        read_embeddings(f'{two}{{{escaped},"index":1}}]}}'.encode(), 2)


def test_reply_of_keys_without_vectors_is_refused_early() -> None:
    steps = wire.read_embeddings(b'"embedding",' * 1_000_000, 1)
    with pytest.raises(BadReplyError):
        list(itertools.islice(steps, 100_000))

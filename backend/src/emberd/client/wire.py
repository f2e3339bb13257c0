"""The embeddings wire format: requests, replies, and what a reply without vectors means.

The requests and replies of rerankers are in ``scores``.

Nothing here sends anything.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, Literal

import msgspec
import pybase64

from emberd import env
from emberd.catalog import EMBED
from emberd.client.event_loops import Steps
from emberd.client.inputs import Input
from emberd.errors import (
    AuthenticationError,
    BadReplyError,
    RejectedError,
    RequestError,
    RequestTimeoutError,
    ServerMismatchError,
    ServerUnavailableError,
)

PATH: Final = "/v1/embeddings"

BUSY: Final = frozenset(
    {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
"""Statuses after which a retry may succeed: a full queue, a router without workers."""

NO_ROUTE: Final = frozenset(
    {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED}
)
"""Statuses of a server that does not have the route."""

MOST_BYTES: Final = 4 * 1024 * 1024
"""Most bytes of a reply without vectors, or whose vectors have an unknown length."""

LONG_TEXT: Final = 2048
"""From so many characters on, a request with one text is not sent again after a timeout."""

LONG_IDS: Final = 512
"""From so many token ids on, likewise."""

# Of a reply with vectors. A number takes 5.4 bytes in base64, up to 25 in digits, and more with the
# blanks of some servers; the rest is for the names of fields.
_NUMBER_BYTES: Final = 64
_VECTOR_BYTES: Final = 1024
_VECTOR_VALUES: Final = 64  # besides its numbers
_REPLY_BYTES: Final = 64 * 1024

_BARE: Final = ("", "identity")
_INPUT: Final = "input"

_DIMENSIONS: Final = "dimensions"
_SHOWN_CHARACTERS: Final = 300
_SHOWN_BYTES: Final = 60
_FLOAT_BYTES: Final = 4
_NOT_JSON: Final = (ValueError, RecursionError)  # the second from deeply nested brackets
_ADVICE: Final = "Nothing of this reply is used. Check which server answers at this address."


@dataclass(frozen=True, slots=True)
class Request:
    """A request: POST of a JSON body, or GET without one.

    Attributes:
        path: The route.
        body: What is posted; None for a GET.
        most_bytes: Most bytes that a right reply can have.
        tokens: How many tokens the texts that it embeds have; None if not known.
        texts_in: Which field of the body has them.
    """

    path: str
    body: dict[str, Any] | None = None
    most_bytes: int = MOST_BYTES
    tokens: int | None = None
    texts_in: str = _INPUT

    @property
    def inputs(self) -> list[Input]:
        """The texts, or token ids, to embed."""
        given: list[Input] = (self.body or {})[self.texts_in]
        return given

    @property
    def is_long_text(self) -> bool:
        """Whether it embeds one text only, and may take longer than the timeout with it."""
        given = (self.body or {}).get(self.texts_in)
        if not isinstance(given, list) or len(given) != 1:
            return False
        return len(given[0]) > (LONG_TEXT if isinstance(given[0], str) else LONG_IDS)

    @property
    def dimensions(self) -> int | None:
        """Length to which the server is asked to cut the vectors."""
        return (self.body or {}).get(_DIMENSIONS)


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply, of any status."""

    status: int
    body: bytes
    retry_after: str | None = None


@dataclass(frozen=True, slots=True)
class TransportError:
    """There was no reply. A value, not an exception.

    Attributes:
        kind: ``"refused"``: no connection was made, so the server saw nothing of the request.
            ``"changed"``: another listener than the verified one is at the address, and nothing
            was sent. ``"broken"``: the connection ended in the middle. ``"timeout"``.
        text: What the transport reports.
    """

    kind: Literal["refused", "changed", "broken", "timeout"]
    text: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request after the retries.

    Attributes:
        answer: The last answer.
        tries: How often it was sent.
        seconds: How long all tries took together.
        reached: Whether one of the tries broke off while the server had it.
    """

    answer: Reply | TransportError
    tries: int
    seconds: float
    reached: bool = False


@dataclass(frozen=True, slots=True)
class ServerLost:
    """The server is gone, or was replaced by another one.

    Attributes:
        error: What to raise when it cannot be replaced.
        reached: Whether it went while it had this request.
        changed: Whether another listener is at its address: a server there must be verified
            before anything is sent.
    """

    error: ServerUnavailableError | ServerMismatchError
    reached: bool
    changed: bool = False


@dataclass(frozen=True, slots=True)
class TooLong:
    """The server refused a request because one of its texts is too long; it does not say which.

    Attributes:
        tokens: Length of the text; None when not known.
        limit: Most tokens that the server accepts; None when not known.
    """

    tokens: int | None
    limit: int | None


Failure = ServerLost | TooLong | RequestError


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The content of a good reply.

    Attributes:
        vectors: The embeddings, in the order of their ``index`` fields: little-endian float32.
        model: The name that the server gives for the model; None when it gives none.
        tokens: How many tokens the server says it read; None when it does not say.
    """

    vectors: list[bytes]
    model: str | None
    tokens: int | None = None


# ---------------------------------------------------------------- requests


def embed_request(
    model: str,
    inputs: list[Input],
    dimensions: int | None,
    *,
    native: int | None = None,
    tokens: int | None = None,
) -> Request:
    """Return the request that embeds ``inputs``, which are all strings or all token ids.

    Args:
        model: The name under which the server serves the model.
        inputs: What is embedded.
        dimensions: Length to which the server is asked to cut the vectors; None for native.
        native: Length of a native vector, which bounds the reply; None if not known.
        tokens: How many tokens ``inputs`` have; None if not known.
    """
    body: dict[str, Any] = {"model": model, _INPUT: inputs, "encoding_format": "base64"}
    if dimensions is not None:
        body[_DIMENSIONS] = dimensions
    if native is None:
        return Request(PATH, body, tokens=tokens)
    vector_bytes = native * _NUMBER_BYTES + _VECTOR_BYTES
    return Request(PATH, body, _REPLY_BYTES + len(inputs) * vector_bytes, tokens)


def merge(requests: list[Request]) -> Request:
    """Return one request for all inputs of ``requests``, which differ in nothing else."""
    if len(requests) == 1:
        return requests[0]
    inputs = [given for request in requests for given in request.inputs]
    most_bytes = sum(request.most_bytes for request in requests)
    first = requests[0]
    body = {**(first.body or {}), first.texts_in: inputs}
    return Request(first.path, body, most_bytes, total_tokens(requests), first.texts_in)


def total_tokens(requests: Iterable[Request]) -> int | None:
    """Return how many tokens the texts of ``requests`` have; None if one does not say."""
    counts = [request.tokens for request in requests]
    return None if None in counts else sum(filter(None, counts))


# ---------------------------------------------------------------- replies that are not read


def check_encoding(status: int, encoding: str | None) -> None:
    """Raise if a reply with vectors is compressed: a small one may unpack to gigabytes.

    Compression is never requested; vectors in base64 become hardly smaller by it.

    Raises:
        BadReplyError: It is.
    """
    if status == HTTPStatus.OK and (encoding or "").strip().casefold() not in _BARE:
        raise BadReplyError(
            f"The reply cannot be unpacked ({str(encoding)[:_SHOWN_BYTES]} was not asked for). "
            f"Nothing of it is used. Check which server, or which proxy, answers at this address."
        )


def too_large(error: Exception) -> BadReplyError:
    """Return the error for a reply that is larger than any right one."""
    return BadReplyError(f"The reply is not read to its end: {error}. {_ADVICE}")


# ---------------------------------------------------------------- good replies


# The key and the first character of an embedding. In a string, the quotes would be escaped.
_EMBEDDING: Final = b'"embedding"'
_EMBEDDING_VALUE: Final = re.compile(rb'"embedding"[ \t\r\n]*:[ \t\r\n]*(?:(")|\[)')


class _DataItem(msgspec.Struct):
    embedding: str | list[float]
    index: int


class _Body(msgspec.Struct):
    data: list[_DataItem]
    model: Any = None
    usage: Any = None


_DECODER: Final = msgspec.json.Decoder(_Body)
_NUMBERS: Final = msgspec.json.Decoder(list[float])
_NOT_DECODED: Final = (msgspec.DecodeError, *_NOT_JSON)


def read_embeddings(
    body: bytes, count: int, native: int | None = None, tokens: int | None = None
) -> Steps[Embeddings]:
    """Return the ``count`` embeddings of a reply, and the model that it names.

    The embeddings are taken out of the body one by one, each leaves its number there, and only this
    rest is parsed at once: a reply of numbers takes a parser a tenth of a second, and becomes as
    many Python objects.

    Args:
        body: The body of the reply.
        count: How many texts were sent.
        native: Length of a native vector; None if not known.
        tokens: How many tokens the texts have; None if not known.

    Raises:
        BadReplyError: It is not JSON, an embedding is missing, duplicated or malformed, or the
            server read another number of tokens than the texts have.
    """
    found: list[bytes] = []
    rest: list[bytes] = []
    # Two bytes of it may become a Python object of thirty-two.
    most = _REPLY_BYTES + count * _VECTOR_BYTES
    start = place = kept = 0
    while (place := body.find(_EMBEDDING, place)) >= 0:
        if kept + place - start > most:
            break
        if (match := _EMBEDDING_VALUE.match(body, place)) is None:
            place += len(_EMBEDDING)
            yield
            continue
        first = match.end()
        end = body.find(b'"' if match[1] else b"]", first)
        if len(found) == count:
            raise BadReplyError(
                f"The reply has more than {count} vectors for {count} texts. {_ADVICE}"
            )
        if end < 0:
            raise _malformed(body, b"", count)
        rest.append(body[start:first] + b"%d" % len(found))
        if match[1]:
            found.append(_read_base64(body, first, end, len(found)))
        else:
            found.append(_read_numbers(body[first - 1 : end + 1], len(found), native))
        kept += len(rest[-1])
        start = place = end
        yield
    if kept + len(body) - start > most:
        raise _malformed(body, body[: most + 1], count)
    others = b"".join([*rest, body[start:]])
    try:
        reply = _DECODER.decode(others)
    except _NOT_DECODED:
        raise _malformed(body, others, count) from None
    numbers = [item.embedding for item in reply.data]
    places = {item.index: place for place, item in enumerate(reply.data)}
    in_place = all(number in (str(place), [place]) for place, number in enumerate(numbers))
    if not (in_place and len(numbers) == len(found) == len(places) == count):
        raise _malformed(body, others, count)
    try:
        in_order = [found[places[index]] for index in range(count)]
    except KeyError:
        raise _malformed(body, others, count) from None
    told = check_tokens(reply.usage, count, tokens)
    return Embeddings(in_order, reply.model if isinstance(reply.model, str) else None, told)


def check_tokens(usage: Any, count: int, tokens: int | None) -> int | None:
    """Return how many tokens a server says it read; raise if the texts have another number.

    Args:
        usage: What the reply says of it.
        count: How many texts were sent.
        tokens: How many tokens they have; None if not known.

    Raises:
        BadReplyError: It did.
    """
    told = _prompt_tokens(usage)
    if tokens is not None and told not in (None, tokens):
        raise BadReplyError(
            f"The server read {told} tokens, but the {count} texts of the request have {tokens}: "
            f"it cuts or changes texts. The reply is discarded. Start the server without "
            f"an option that truncates, or use another one."
        )
    return told


def _read_base64(body: bytes, first: int, end: int, place: int) -> bytes:
    text: Any = memoryview(body)[first:end]
    try:
        if body.find(b"\\", first, end) >= 0:
            text = msgspec.json.decode(body[first - 1 : end + 1])
        packed = pybase64.b64decode(text, validate=True)
    except _NOT_DECODED:
        packed = b"?"  # fails the length check
    if len(packed) % _FLOAT_BYTES:
        raise _not_a_vector(place)
    return packed


def _read_numbers(listed: bytes, place: int, native: int | None) -> bytes:
    if native is not None and (commas := listed.count(b",")) > native + _VECTOR_VALUES:
        raise BadReplyError(
            f"Vector {place} of the reply has {commas + 1} values instead of {native}. {_ADVICE}"
        )
    try:
        numbers = _NUMBERS.decode(listed)
        return struct.pack(f"<{len(numbers)}f", *numbers)
    except (*_NOT_DECODED, OverflowError):  # the last for a number beyond those of float32
        raise _not_a_vector(place) from None


def _not_a_vector(place: int) -> BadReplyError:
    return BadReplyError(
        f"Vector {place} of the reply is neither base64 of float32 nor a list of numbers. {_ADVICE}"
    )


def _malformed(body: bytes, others: bytes, count: int) -> BadReplyError:
    """Return the error for a reply that is not as expected.

    Args:
        body: The whole reply.
        others: What is left of it, with numbers in the place of embeddings.
        count: How many texts were sent.
    """
    most = _REPLY_BYTES + count * _VECTOR_BYTES
    start = body[:_SHOWN_BYTES].lstrip().decode("utf-8", "replace")
    reply: Any = None
    try:
        reply = json.loads(others[:most])
    except _NOT_JSON:
        what = f"The reply of {len(body)} bytes is not JSON: {start!r}."
        if start.startswith("<"):
            what = f"The reply is a page of HTML or XML, not JSON: {start!r}."
        elif len(others) > most:
            what = f"The reply of {len(body)} bytes has more than {count} vectors in it: {start!r}."
        elif start.startswith("{"):
            what = f"The reply is JSON that breaks off after {len(body)} bytes."
        return BadReplyError(f"{what} {_ADVICE}")
    entries = reply.get("data") if isinstance(reply, dict) else None
    if not isinstance(entries, list):
        return BadReplyError(f"The reply is JSON without a list of vectors ('data'). {_ADVICE}")
    if len(entries) != count:
        return BadReplyError(f"The reply has {len(entries)} vectors for {count} texts. {_ADVICE}")
    seen = set[int]()
    for place, entry in enumerate(entries):
        index = entry.get("index") if isinstance(entry, dict) else None
        if type(index) is not int or not 0 <= index < count:
            return BadReplyError(
                f"The reply has a vector with index {index!r}; valid indices are 0 to {count - 1}. "
                f"{_ADVICE}"
            )
        if index in seen:
            return BadReplyError(f"The reply has two vectors for text {index}. {_ADVICE}")
        seen.add(index)
        if entry.get("embedding") not in (str(place), [place]):
            return _not_a_vector(index)
    return BadReplyError(f"The reply has other embeddings than those of 'data'. {_ADVICE}")


def prompt_tokens(body: bytes) -> int | None:
    """Return how many tokens the server says it read; None when it does not say."""
    return _prompt_tokens(parse_object(body).get("usage"))


def _prompt_tokens(usage: Any) -> int | None:
    tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return tokens if type(tokens) is int else None


def parse_object(body: bytes | None) -> dict[str, Any]:
    """Return the JSON object in ``body``; an empty one if there is none."""
    try:
        found = json.loads(body or b"null")
    except _NOT_JSON:
        found = None
    return found if isinstance(found, dict) else {}


# ---------------------------------------------------------------- failures


def body_or_failure(outcome: Outcome, url: str, task: str = EMBED) -> bytes | Failure:
    """Return the body of a good reply, or what the outcome means.

    Args:
        outcome: What became of the request.
        url: Root of the server, for the text of the error.
        task: What its model is used for, likewise.
    """
    if isinstance(outcome.answer, TransportError):
        return _transport_failure(outcome, outcome.answer, url)
    reply = outcome.answer
    if reply.status == HTTPStatus.OK:
        return reply.body
    said = message(reply.body)
    if reply.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return unauthorized(reply.status, said, url, task)
    if (too_long := _too_long(reply.status, said)) is not None:
        return too_long
    if reply.status in BUSY:
        return ServerUnavailableError(
            f"{url} answered {reply.status} ({said}) to {outcome.tries} tries in "
            f"{outcome.seconds:.0f} s. It is overloaded: lower max_concurrency, or try later."
        )
    return RejectedError(
        f"{url} refused the request with status {reply.status}: {said}. {_advice(reply.status)}",
        status=reply.status,
    )


def unauthorized(status: int, said: str, url: str, task: str = EMBED) -> AuthenticationError:
    """Return the error for a missing or wrong API key."""
    return AuthenticationError(
        f"{url} answered {status} ({said}): the API key is missing or wrong. "
        f"Give api_key=, or set {env.setting_variable('api_key', task)}."
    )


def message(body: bytes) -> str:
    """Return the message in the body of an error, in any of the forms that servers use."""
    try:
        said = json.loads(body)
    except _NOT_JSON:
        said = body.decode("utf-8", "replace")
    if isinstance(said, dict):  # SGLang is flat, OpenAI and vLLM nest; a wrong key is a bare text
        said = said.get("error") or said.get("message") or said.get("detail") or said
    if isinstance(said, dict):
        said = said.get("message") or said
    return " ".join(str(said).split())[:_SHOWN_CHARACTERS].rstrip(". ") or "no reason given"


def _transport_failure(outcome: Outcome, error: TransportError, url: str) -> Failure:
    tries = "one try" if outcome.tries == 1 else f"{outcome.tries} tries"
    if error.kind == "timeout":
        return RequestTimeoutError(
            f"{url} did not answer within {outcome.seconds:.0f} s in {tries}: {error.text}. "
            f"Raise timeout=, or lower batch_size if texts are long or the device is slow."
        )
    if error.kind == "changed":
        changed = ServerUnavailableError(
            f"No text and no key was sent to {url}: {error.text}. Look at what listens there, "
            f"start the server again, or correct base_url."
        )
        return ServerLost(changed, reached=outcome.reached, changed=True)
    unavailable = ServerUnavailableError(
        f"No response from {url} after {tries}: {error.text}. "
        f"Start the server there, correct base_url, or omit base_url to let emberd start one."
    )
    return ServerLost(unavailable, reached=outcome.reached)


def _advice(status: int) -> str:
    if status == HTTPStatus.NOT_FOUND:
        return "Correct base_url: it must be the root of an OpenAI-compatible server."
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return "Lower batch_size."
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        return "Redirects are not followed: give the final address as base_url."
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "See the server's log (for a server that emberd started: emberd logs)."
    return "Correct the setting that the message names. Retrying the same request would fail again."


# What SGLang (twice), vLLM, llama.cpp (twice), emberd's gateway and TEI say of too long a text.
_TOO_LONG: Final = re.compile(
    r"longer than the model's context length|exceeds the maximum allowed length"
    r"|maximum context length|exceeds the available context size|too large to process"
    r"|has \d+ tokens, \d+ are allowed|must have less than \d+ (?:tokens|characters)",
    re.IGNORECASE,
)
# SGLang names the first length that it refuses, the others the last one that they accept.
_REFUSES_AT_LIMIT: Final = re.compile(
    r"longer than the model's context length|exceeds the maximum allowed length", re.IGNORECASE
)
_LENGTH: Final = re.compile(
    r"(?:request|input(?: length)?) \((\d+) tokens\)|requested (\d+) tokens"
    r"|contains? (?:at least )?(\d+)(?: input)? tokens|has (\d+) tokens, \d+ are allowed"
    r"|less than \d+ tokens\. Given: (\d+)",
    re.IGNORECASE,
)
_LIMIT: Final = re.compile(
    r"(?:context length|allowed length|context size)[^\d]{0,20}(\d+)"
    r"|has \d+ tokens, (\d+) are allowed|less than (\d+) tokens",
    re.IGNORECASE,
)


def _too_long(status: int, said: str) -> TooLong | None:
    refused = {HTTPStatus(each) for each in (400, 413, 422, 500)}
    if status not in refused or not _TOO_LONG.search(said):
        return None
    length, limit = _number(_LENGTH, said), _number(_LIMIT, said)
    if limit is not None and (_REFUSES_AT_LIMIT.search(said) or length == limit):
        limit -= 1
    return TooLong(tokens=length, limit=limit)


def _number(pattern: re.Pattern[str], said: str) -> int | None:
    match = pattern.search(said)
    return next((int(group) for group in match.groups() if group), None) if match else None

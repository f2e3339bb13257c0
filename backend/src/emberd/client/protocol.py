"""The embeddings wire format: what is asked, and what an answer means when it is no vector.

Nothing here sends anything.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, Literal

from emberd.client.texts import Input
from emberd.errors import (
    AuthenticationError,
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
"""Statuses that another try may turn into an answer: a full queue, a router without workers."""

NO_ROUTE: Final = frozenset(
    {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED}
)
"""Statuses of a server that does not have what was asked for."""

_INPUT: Final = "input"
_DIMENSIONS: Final = "dimensions"
_SHOWN_CHARACTERS: Final = 300


@dataclass(frozen=True, slots=True)
class Ask:
    """A request: POST of a JSON body, or GET where there is none."""

    path: str
    body: dict[str, Any] | None = None

    @property
    def inputs(self) -> list[Input]:
        """The texts, or token ids, that are to be embedded."""
        given: list[Input] = (self.body or {})[_INPUT]
        return given

    @property
    def dimensions(self) -> int | None:
        """What the server is asked to cut vectors to."""
        return (self.body or {}).get(_DIMENSIONS)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, whatever its status."""

    status: int
    body: bytes
    retry_after: str | None = None


@dataclass(frozen=True, slots=True)
class Trouble:
    """No answer.

    Attributes:
        kind: ``"refused"`` when no connection came about, so that the server saw nothing of the
            request; ``"changed"`` when another listener than the verified one is at the address,
            and nothing was sent; ``"broken"`` when it ended in the middle; ``"timeout"``.
        text: What the transport says of it.
    """

    kind: Literal["refused", "changed", "broken", "timeout"]
    text: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request after the retries.

    Attributes:
        answer: The last answer.
        tries: How often it was sent.
        seconds: How long all of it took.
        reached: Whether one of the tries broke off while the server had it.
    """

    answer: Reply | Trouble
    tries: int
    seconds: float
    reached: bool = False


@dataclass(frozen=True, slots=True)
class Gone:
    """The server went away, or another one has taken its place.

    Attributes:
        error: What to raise when nothing brings it back.
        reached: Whether it went while it had this request.
        changed: Whether another listener is at its address: a server there must be verified
            before anything is sent.
    """

    error: ServerUnavailableError | ServerMismatchError
    reached: bool
    changed: bool = False


@dataclass(frozen=True, slots=True)
class TooLong:
    """The server refused a request because one of its texts is too long; it does not say which."""

    tokens: int | None
    limit: int | None


Failure = Gone | TooLong | RequestError


def embed(model: str, inputs: list[Input], dimensions: int | None) -> Ask:
    """Return the request that embeds ``inputs``, which are all strings or all token ids."""
    body: dict[str, Any] = {"model": model, _INPUT: inputs, "encoding_format": "base64"}
    if dimensions is not None:
        body[_DIMENSIONS] = dimensions
    return Ask(PATH, body)


def merged(asks: list[Ask]) -> Ask:
    """Return the one request for all that is embedded by ``asks``, which differ in nothing else."""
    if len(asks) == 1:
        return asks[0]
    inputs = [given for ask in asks for given in ask.inputs]
    return Ask(PATH, {**(asks[0].body or {}), _INPUT: inputs})


def judge(outcome: Outcome, url: str) -> bytes | Failure:
    """Return the body of a good answer, or what the outcome means.

    Args:
        outcome: What became of the request.
        url: The server's root, for the error's text.
    """
    if isinstance(outcome.answer, Trouble):
        return _judge_trouble(outcome.answer, outcome, url)
    reply = outcome.answer
    if reply.status == HTTPStatus.OK:
        return reply.body
    said = message(reply.body)
    if reply.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return unauthorized(reply.status, said, url)
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


def parse(body: bytes) -> Any:
    """Return ``body`` as JSON.

    Raises:
        ValueError: It is none, or is nested more deeply than any answer is.
    """
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def unauthorized(status: int, said: str, url: str) -> AuthenticationError:
    """Return the error for a server that wants another key."""
    return AuthenticationError(
        f"{url} answered {status} ({said}): it wants a key, or another one. "
        f"Give api_key=, or set EMBERD_API_KEY."
    )


def message(body: bytes) -> str:
    """Return what a server says in the body of an error, in whichever form it does."""
    try:
        said = parse(body)
    except ValueError:
        said = body.decode("utf-8", "replace")
    if isinstance(said, dict):  # SGLang is flat, OpenAI and vLLM nest; a wrong key is a bare text
        said = said.get("error") or said.get("message") or said.get("detail") or said
    if isinstance(said, dict):
        said = said.get("message") or said
    return " ".join(str(said).split())[:_SHOWN_CHARACTERS].rstrip(". ") or "no reason given"


def _judge_trouble(trouble: Trouble, outcome: Outcome, url: str) -> Failure:
    tries = "one try" if outcome.tries == 1 else f"{outcome.tries} tries"
    if trouble.kind == "timeout":
        return RequestTimeoutError(
            f"{url} did not answer within {outcome.seconds:.0f} s in {tries}: {trouble.text}. "
            f"Raise timeout=, or lower batch_size, where texts are long or the device is slow."
        )
    if trouble.kind == "changed":
        changed = ServerUnavailableError(
            f"No text and no key was sent to {url}: {trouble.text}. Look at what listens there, "
            f"start the server again, or correct base_url."
        )
        return Gone(changed, reached=outcome.reached, changed=True)
    error = ServerUnavailableError(
        f"No response from {url} after {tries}: {trouble.text}. "
        f"Start the server there, correct base_url, or leave base_url out and let emberd start one."
    )
    return Gone(error, reached=outcome.reached)


def _advice(status: int) -> str:
    if status == HTTPStatus.NOT_FOUND:
        return "Correct base_url: it must be the root of an OpenAI-compatible server."
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return "Lower batch_size."
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        return "Redirects are not followed: give the final address as base_url."
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "Look into the server's log (emberd logs, for a server of emberd's)."
    return "Correct the setting that it names; it would refuse the same request again."


# What SGLang (twice), vLLM and llama.cpp say of a text that is too long.
_TOO_LONG: Final = re.compile(
    r"longer than the model's context length|exceeds the maximum allowed length"
    r"|maximum context length|exceeds the available context size|too large to process",
    re.IGNORECASE,
)
# SGLang names the first length that it refuses, the others the last one that they take.
_REFUSES_AT_LIMIT: Final = re.compile(
    r"longer than the model's context length|exceeds the maximum allowed length", re.IGNORECASE
)
_LENGTH: Final = re.compile(
    r"(?:request|input(?: length)?) \((\d+) tokens\)|requested (\d+) tokens"
    r"|contains? (?:at least )?(\d+)(?: input)? tokens",
    re.IGNORECASE,
)
_LIMIT: Final = re.compile(
    r"(?:context length|allowed length|context size)[^\d]{0,20}(\d+)", re.IGNORECASE
)


def _too_long(status: int, said: str) -> TooLong | None:
    refused = (
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.INTERNAL_SERVER_ERROR,
    )
    if status not in refused or not _TOO_LONG.search(said):
        return None
    length, limit = _number(_LENGTH, said), _number(_LIMIT, said)
    if limit is not None and (_REFUSES_AT_LIMIT.search(said) or length == limit):
        limit -= 1
    return TooLong(tokens=length, limit=limit)


def _number(pattern: re.Pattern[str], said: str) -> int | None:
    match = pattern.search(said)
    return next((int(group) for group in match.groups() if group), None) if match else None

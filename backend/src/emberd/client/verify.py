"""Is this a server that gives the vectors that were asked for? Asked before its first use.

Not the embedding's own ``model`` field is believed, which SGLang copies from its command line, but
the names that the server lists, one real embedding, and the tokens that it read for it. A keeper
runs this too, so it needs neither the openai SDK nor numpy.
"""

from __future__ import annotations

import json
import math
import struct
import urllib.error
from collections.abc import Generator
from http import HTTPStatus
from typing import Any, Final

from emberd import catalog, surface
from emberd.catalog import Model
from emberd.client import protocol, replies, tokens
from emberd.client.protocol import Ask, Reply, Trouble
from emberd.client.replies import Raw
from emberd.errors import BadReplyError, ServerMismatchError, ServerUnavailableError
from emberd.settings import Endpoint, ServerSpec

TIMEOUT_S: Final = 60.0
NORM_TOLERANCE: Final = 1e-2

_PROBE: Final = "emberd asks: is this the right model?"
_FLOAT_BYTES: Final = 4
_MODELS: Final = "/v1/models"
_MODEL_INFO: Final = "/model_info"

Examination = Generator[Ask, Reply | Trouble | None, Endpoint]
"""Asks one thing after another; each answer is sent in (None only to begin)."""


def verify(
    url: str, api_key: str | None, spec: ServerSpec, timeout_s: float = TIMEOUT_S
) -> Endpoint:
    """Return what answers at ``url`` if it serves ``spec``.

    Args:
        url: Root of the server, without ``/v1``.
        api_key: Its key, or None.
        spec: What is wanted.
        timeout_s: How long each request may take, in seconds.

    Raises:
        ServerMismatchError: It serves something else, or not correctly; the text says what.
        AuthenticationError: It wants a key, or another one.
        ServerUnavailableError: Nobody answers, or the server is not ready.
    """
    examined = examination(url, api_key, spec, timeout_s)
    answer: Reply | Trouble | None = None
    while True:
        try:
            ask = examined.send(answer)
        except StopIteration as stop:
            found: Endpoint = stop.value
            return found
        answer = _send(url, api_key, ask, timeout_s)


def examination(url: str, api_key: str | None, spec: ServerSpec, timeout_s: float) -> Examination:
    """Do as ``verify``, for a driver that sends, and gives each request ``timeout_s``."""
    steps = _examination(url, api_key, spec)
    answer: Reply | Trouble | None = None
    while True:
        try:
            ask = steps.send(answer)
        except StopIteration as stop:
            found: Endpoint = stop.value
            return found
        answer = yield ask
        if isinstance(answer, Trouble) and answer.kind == "timeout":
            raise ServerUnavailableError(
                f"{url}{ask.path} did not answer within {timeout_s:g} s. The server is busy, still "
                f"loading or stuck: look into its log, and try again later."
            )


def _examination(url: str, api_key: str | None, spec: ServerSpec) -> Examination:
    model = catalog.lookup(spec.model)
    entries = _entries(_body(url, _MODELS, (yield Ask(_MODELS))))
    info = _object(_body(url, _MODEL_INFO, (yield Ask(_MODEL_INFO))))
    entry = _serving(url, spec.model, entries, info)
    name = str(entry["id"])
    body = _body(url, protocol.PATH, (yield protocol.embed(name, [_PROBE], None)))
    dimensions = _check_vector(url, model, body)
    if model.end_of_text_id is not None:
        counted = _body(url, tokens.PATH, (yield tokens.ask(name, _PROBE)))
        _check_tokens(url, model, counted, body)
    context = entry.get("max_model_len")
    return Endpoint(
        url=url,
        model=name,
        dimensions=dimensions,
        context_tokens=context if isinstance(context, int) else None,
        api_key=api_key,
        server=str(entry.get("owned_by") or "unknown"),
    )


def _body(url: str, path: str, reply: Reply | Trouble | None) -> bytes | None:
    """Return the body of a good reply; None where the server has no such route."""
    if not isinstance(reply, Reply):
        why = f" ({reply.text})" if reply is not None else ""
        raise ServerUnavailableError(
            f"Nobody answers at {url}{path}{why}. Start the server there, or correct base_url."
        )
    if reply.status == HTTPStatus.OK:
        return reply.body
    said = protocol.message(reply.body)
    if reply.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise protocol.unauthorized(reply.status, said, url)
    if reply.status in protocol.BUSY:
        raise ServerUnavailableError(
            f"{url}{path} answered {reply.status} ({said}): it is not ready. Try again later."
        )
    if reply.status in protocol.NO_ROUTE and path != protocol.PATH:
        return None  # vLLM and llama.cpp have no /model_info, a router passes on but some routes
    raise ServerMismatchError(
        f"{url}{path} answered {reply.status}: {said}. Start the server as one of embeddings, or "
        f"give the base_url of such a server."
    )


def _object(body: bytes | None) -> dict[str, Any]:
    try:
        found = protocol.parse(body) if body is not None else None
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


def _entries(body: bytes | None) -> list[dict[str, Any]]:
    data = _object(body).get("data")
    entries = data if isinstance(data, list) else []
    return [entry for entry in entries if isinstance(entry, dict) and entry.get("id")]


def _serving(
    url: str, wanted: str, entries: list[dict[str, Any]], info: dict[str, Any]
) -> dict[str, Any]:
    """Return the entry of ``/v1/models`` that is the wanted model."""
    if info.get("is_generation") is True:
        raise ServerMismatchError(
            f"{url} generates text with {info.get('model_path')} and gives no embeddings. "
            f"Start it as a server of embeddings, or give the base_url of another one."
        )
    for entry in entries:
        if _same(wanted, entry["id"]) or _same(wanted, entry.get("root")):
            return entry
    paths = [info.get("served_model_name"), info.get("model_path")]
    if any(_same(wanted, path) for path in paths):
        return entries[0] if entries else {"id": paths[0] or paths[1]}
    served = [str(entry["id"]) for entry in entries] or [str(path) for path in paths if path]
    if not served:
        raise ServerMismatchError(
            f"{url} does not say which model it serves: neither {_MODELS} nor {_MODEL_INFO} "
            f"lists one. Correct base_url: it must be the root of an OpenAI-compatible server."
        )
    raise ServerMismatchError(
        f"{url} serves {', '.join(served)}, and {wanted} was asked for. Ask for "
        f"model={served[0]!r}, or give the base_url of a server for {wanted}."
    )


def _same(wanted: str, served: Any) -> bool:
    return isinstance(served, str) and (
        catalog.names(wanted, served) or catalog.names(served, wanted)
    )


def _check_vector(url: str, model: Model, body: bytes | None) -> int:
    try:
        vector = _numbers(replies.read(body or b"", 1).vectors[0])
    except (BadReplyError, OverflowError) as error:
        raise ServerMismatchError(f"{url} embeds, but not as it should: {error}") from error
    if model.dimensions not in (None, len(vector)):
        raise ServerMismatchError(
            f"{url} gives vectors of {len(vector)} dimensions; {model.name} has "
            f"{model.dimensions}. Another model, or one cut by the server, answers there."
        )
    norm = math.hypot(*vector)
    if not abs(norm - 1) <= NORM_TOLERANCE:  # so that NaN fails too
        raise ServerMismatchError(
            f"{url} gives vectors of norm {norm:.4g} instead of 1: they are not normalised, or "
            f"computed wrongly, as float16 does. Serve the model in bfloat16 or float32."
        )
    return len(vector)


def _numbers(raw: Raw) -> tuple[float, ...]:
    if isinstance(raw, bytes):
        return struct.unpack(f"<{len(raw) // _FLOAT_BYTES}f", raw)
    return tuple(float(number) for number in raw)


def _check_tokens(url: str, model: Model, counted: bytes | None, embedded: bytes | None) -> None:
    if counted is None:
        return
    try:
        ids = tokens.read(counted)
    except BadReplyError as error:
        raise ServerMismatchError(f"{url}: {error}") from error
    if ids[-1] != model.end_of_text_id:
        raise ServerMismatchError(
            f"{url} ends a text with token {ids[-1]} instead of {model.end_of_text_id}, which "
            f"{model.name} pools. Its tokenizer is out of date: fetch the model again."
        )
    read = replies.prompt_tokens(embedded or b"{}")
    if read not in (None, len(ids)):
        raise ServerMismatchError(
            f"{url} read {read} tokens where its tokenizer makes {len(ids)}: the end-of-text token "
            f"may be missing. Use a server whose embeddings read what its tokenizer makes."
        )


def _send(url: str, api_key: str | None, ask: Ask, timeout_s: float) -> Reply | Trouble:
    body = None if ask.body is None else json.dumps(ask.body).encode()
    try:
        found = surface.fetch(url, ask.path, body, api_key, timeout_s)
    except surface.NO_ANSWER as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ValueError):
            # What urllib says of a header that HTTP does not allow repeats the key.
            return Trouble("refused", "the request cannot be sent")
        return Trouble("timeout" if isinstance(reason, TimeoutError) else "broken", str(reason))
    return Reply(found.status, found.body)

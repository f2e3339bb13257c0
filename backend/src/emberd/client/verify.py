"""Is this a server that gives the vectors that were asked for? Asked before its first use.

Not the embedding's own ``model`` field is believed, which SGLang copies from its command line, but
the names that the server lists, one real embedding, and the tokens that it read for it. A
supervisor runs this too, so it needs neither the openai SDK nor numpy.
"""

from __future__ import annotations

import json
import math
import struct
import urllib.error
from collections.abc import Generator
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final

from emberd import model_card, probe
from emberd.catalog import Model
from emberd.client import naming, protocol, replies, tokens
from emberd.client.protocol import Ask, Reply, Trouble
from emberd.client.replies import Answer, Raw
from emberd.endpoint import Endpoint
from emberd.errors import BadReplyError, ServerMismatchError, ServerUnavailableError
from emberd.probe import MODEL_INFO, MODELS, OLD_MODEL_INFO
from emberd.settings import ServerSpec
from emberd.system import listeners
from emberd.system.listeners import Listener

TIMEOUT_S: Final = 60.0
NORM_TOLERANCE: Final = 1e-2

_SGLANG: Final = "sglang"
_SERVER_INFO: Final = "/server_info"
_PROBE: Final = "emberd asks: is this the right model?"
_FLOAT_BYTES: Final = 4
_MOST_PROBES: Final = 4
_NO_TASKS: Final = (None, "none", "embed")

Examination = Generator[Ask, Reply | Trouble | None, Endpoint]
"""Asks one thing after another; each answer is sent in (None only to begin)."""


def verify(
    url: str,
    api_key: str | None,
    spec: ServerSpec,
    listener: Listener | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
) -> Endpoint:
    """Return what answers at ``url`` if it serves ``spec``.

    Args:
        url: Root of the server, without ``/v1``.
        api_key: Its key, or None.
        spec: What is wanted.
        listener: The listener that is to be verified; None for the one that is there now, if the
            server is on this machine.
        timeout_s: How long each request may take, in seconds.

    Raises:
        ServerMismatchError: It serves something else, or not correctly; the text says what.
        AuthenticationError: It wants a key, or another one.
        ServerUnavailableError: There is no response, or the server is not ready.
    """
    pinned = listener or listeners.find(url)
    examined = examination(url, api_key, spec, timeout_s)
    answer: Reply | Trouble | None = None
    while True:
        try:
            ask = examined.send(answer)
        except StopIteration as stop:
            found: Endpoint = stop.value
            return replace(found, listener=pinned)
        answer = _send(url, api_key, ask, timeout_s, pinned)


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
    model = model_card.describe(spec.model)
    entries = probe.entries(_object(_body(url, MODELS, (yield Ask(MODELS)))))
    # Where the server lists its models, the other routes are optional: a gateway may close them.
    optional = bool(entries)
    info = _object(_body(url, MODEL_INFO, (yield Ask(MODEL_INFO)), optional=optional))
    if not info:
        reply = yield Ask(OLD_MODEL_INFO)
        info = _object(_body(url, OLD_MODEL_INFO, reply, optional=optional))
    _check_kind(url, info)
    entry = _serving(url, spec.model, entries, info)
    name, server = str(entry["id"]), str(entry.get("owned_by") or "unknown")
    body = yield from _embed(url, name, entries)
    vector = _check_vector(url, model, body)
    if model.end_of_text_id is not None:
        ask = tokens.ask(server, name, _PROBE)
        counted = _body(url, ask.path, (yield ask), optional=True)
        _check_tokens(url, model, counted, body)
    room = _room((yield Ask(_SERVER_INFO))) if server == _SGLANG else None
    context = _context_tokens(entry)
    return Endpoint(
        url=url,
        model=name,
        dimensions=len(vector),
        context_tokens=min(filter(None, (context, room)), default=None),
        api_key=api_key,
        server=server,
        canary=vector,
    )


def _room(reply: Reply | Trouble | None) -> int | None:
    """Return how many tokens an SGLang server can hold; None when it does not say.

    It refuses no text that is longer, but lets it wait for ever (0.5.23, tried).
    """
    told = _object(reply.body if isinstance(reply, Reply) else None)
    room = told.get("max_total_num_tokens")
    return room if isinstance(room, int) else None


def _embed(
    url: str, name: str, entries: list[dict[str, Any]]
) -> Generator[Ask, Reply | Trouble | None, bytes]:
    """Have the probe embedded; once for each of several models, which may all be asked in turn."""
    ask = protocol.embed(name, [_PROBE], None)
    bodies: list[bytes] = []
    while len(bodies) < (min(len(entries), _MOST_PROBES) or 1):
        bodies += [_body(url, ask.path, (yield ask)) or b""]
    models = {_reply(url, body).model for body in bodies}
    if len(models) > 1:
        raise ServerMismatchError(
            f"{url} lets several models answer for {name}: {', '.join(sorted(map(str, models)))}. "
            f"Put servers of one model behind it, or give the base_url of one of them."
        )
    return bodies[-1]


def _body(
    url: str, path: str, reply: Reply | Trouble | None, *, optional: bool = False
) -> bytes | None:
    """Return the body of a good reply; None where the server has no such route.

    An ``optional`` route that is closed to this key (401 or 403) counts as missing: servers and
    gateways answer that for routes that they do not have, and the embedding itself proves the key.
    """
    if not isinstance(reply, Reply):
        why = f" ({reply.text})" if reply is not None else ""
        raise ServerUnavailableError(
            f"No response from {url}{path}{why}. Start the server there, or correct base_url."
        )
    if reply.status == HTTPStatus.OK:
        return reply.body
    said = protocol.message(reply.body)
    if reply.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        if optional:
            return None
        raise protocol.unauthorized(reply.status, said, url)
    if reply.status in protocol.BUSY:
        raise ServerUnavailableError(
            f"{url}{path} answered {reply.status} ({said}): it is not ready. Try again later."
        )
    if reply.status in protocol.NO_ROUTE and path != protocol.PATH:
        return None  # vLLM and llama.cpp have no /model_info, and a router only the old one
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


def _check_kind(url: str, info: dict[str, Any]) -> None:
    advice = "Start it as a server of embeddings, or give the base_url of another one."
    if info.get("is_generation") is True:
        raise ServerMismatchError(
            f"{url} generates text with {info.get('model_path')} and gives no embeddings. {advice}"
        )
    embedding = info.get("embedding")
    task = embedding.get("task") if isinstance(embedding, dict) else None
    if task not in _NO_TASKS:
        kind = ", ".join(map(str, info.get("architectures") or ()))
        raise ServerMismatchError(
            f"{url} is there to {task} with {info.get('model_path')} ({kind}), as rerankers are, "
            f"and gives no embeddings. {advice}"
        )


def _serving(
    url: str, wanted: str, entries: list[dict[str, Any]], info: dict[str, Any]
) -> dict[str, Any]:
    """Return the entry of ``/v1/models`` that is the wanted model."""
    names = [name for key in ("served_model_name", "model_path") if (name := info.get(key))]
    listed = entries or [{"id": name} for name in names[:1]]
    if not listed:
        raise ServerMismatchError(
            f"{url} does not say which model it serves: neither {MODELS} nor {MODEL_INFO} "
            f"lists one. Correct base_url: it must be the root of an OpenAI-compatible server."
        )
    for entry in listed:
        # What SGLang says of itself is said of the first; adapters may follow it.
        said = [entry["id"], entry.get("root"), *(names if entry is listed[0] else ())]
        if _is_wanted(url, wanted, said):
            return entry
    served = [str(entry["id"]) for entry in listed]
    loaded = f" (it has loaded {names[-1]})" if names and names[-1] not in served else ""
    raise ServerMismatchError(
        f"{url} serves {', '.join(served)}, and {wanted} was asked for{loaded}. Give the base_url "
        f"of a server for {wanted}, or ask for model={served[0]!r}. If that is another name for "
        f"the same model, have the server list it as {wanted}."
    )


def _is_wanted(url: str, wanted: str, said: list[Any]) -> bool:
    if probe.is_loopback(url):
        # Files say more than names, where both folders can be seen.
        seen = {naming.holds_model(wanted, path) for path in said} - {None}
        if seen:
            return True in seen
    return any(naming.is_model(wanted, name) for name in said)


def _context_tokens(entry: dict[str, Any]) -> int | None:
    described = entry.get("meta")  # llama.cpp's
    kept = described.get("n_ctx") if isinstance(described, dict) else None
    context = entry.get("max_model_len", kept)
    return context if isinstance(context, int) else None


def _reply(url: str, body: bytes) -> Answer:
    try:
        return replies.read(body, 1)
    except BadReplyError as error:
        raise ServerMismatchError(f"{url} embeds, but not as it should: {error}") from error


def _check_vector(url: str, model: Model, body: bytes) -> tuple[float, ...]:
    try:
        vector = _numbers(_reply(url, body).vectors[0])
    except OverflowError as error:
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
    return vector


def _numbers(raw: Raw) -> tuple[float, ...]:
    if isinstance(raw, bytes):
        return struct.unpack(f"<{len(raw) // _FLOAT_BYTES}f", raw)
    return tuple(float(number) for number in raw)


def _check_tokens(url: str, model: Model, counted: bytes | None, embedded: bytes) -> None:
    if counted is None:
        return
    try:
        ids = tokens.read(counted)
    except BadReplyError as error:
        raise ServerMismatchError(f"{url}: {error}") from error
    read = replies.prompt_tokens(embedded)
    ended = tokens.ended(ids, model)
    if read == len(ended):
        return  # sglang-router counts with a tokenizer of its own, which ends no text
    if ids != ended:
        raise ServerMismatchError(
            f"{url} ends a text with token {ids[-1]} instead of {model.end_of_text_id}, which "
            f"{model.name} pools. Its tokenizer is out of date: fetch the model again."
        )
    if read is not None:
        raise ServerMismatchError(
            f"{url} read {read} tokens where its tokenizer makes {len(ids)}: the end-of-text token "
            f"may be missing. Use a server whose embeddings read what its tokenizer makes."
        )


def _send(
    url: str, api_key: str | None, ask: Ask, timeout_s: float, listener: Listener | None
) -> Reply | Trouble:
    body = None if ask.body is None else json.dumps(ask.body).encode()
    try:
        found = probe.fetch(url, ask.path, body, api_key, timeout_s, listener=listener)
    except probe.NO_ANSWER as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ValueError):
            # What urllib says of a header that HTTP does not allow repeats the key.
            return Trouble("refused", "the request cannot be sent")
        return Trouble("timeout" if isinstance(reason, TimeoutError) else "broken", str(reason))
    return Reply(found.status, found.body)

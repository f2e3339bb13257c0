"""Verifies that a server gives the vectors that were asked for, before its first use.

The ``model`` field of an embedding is not believed, because SGLang copies it from its command line.
Checked are the names that the server lists, the files that it names where they can be read, the
embeddings of a few texts (``canary``), and the tokens that it read for the first. A supervisor runs
this too, so it needs neither the openai SDK nor numpy.
"""

from __future__ import annotations

import functools
import json
import math
import struct
import time
import urllib.error
from collections.abc import Callable, Generator
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final

from emberd import catalog, model_card, model_files, probe
from emberd.catalog import RERANK, Model, is_unit
from emberd.client import (
    canary,
    lengths,
    scores,
    tei,
    tokenizer,
    verify_listing,
    verify_scores,
    wire,
)
from emberd.client.event_loops import finish
from emberd.client.inputs import Input
from emberd.client.verify_scores import Ask
from emberd.client.wire import Reply, Request, TransportError
from emberd.endpoint import Endpoint
from emberd.errors import BadReplyError, ServerMismatchError, ServerUnavailableError
from emberd.probe import TEI
from emberd.settings import ServerSpec
from emberd.system import listeners
from emberd.system.bounded_http import ReplyTooLargeError, bounded
from emberd.system.listeners import Listener, ListenerChangedError

TIMEOUT_S: Final = 60.0

_SGLANG: Final = "sglang"
_OWN: Final = "emberd"
# The servers that read a text as it is given, and refuse one that is too long: SGLang, its router,
# emberd's own, its gateway, vLLM and llama.cpp. What others do is tried.
_AS_GIVEN: Final = frozenset({_SGLANG, "local", _OWN, lengths.GATEWAY, "vllm", "llamacpp"})
# The gateway puts texts into the template of their role. Those that are sent to it from here are in
# theirs already, and would get a prefix twice. It may also be set to cut texts that are too long.
_AS_THEY_ARE: Final = ":query?task={text}&truncate=false"
_ADDS_PROMPTS: Final = (
    "If it is a proxy in front of emberd's gateway: the gateway adds a prompt to each text under "
    "the name that the proxy uses, and this class adds one too. Give the address of the gateway as "
    "base_url, or have the proxy use the gateway's name of the model with {names} after it."
)
_STARTS: Final = (
    "The gateway may be starting the server of the model, which continues: give a longer "
    "start_timeout, or start the gateway with --preload"
)
_CODE_STARTING: Final = b'"server_starting"'
_SERVER_INFO: Final = "/server_info"
_CUT_TAIL_TOKENS: Final = 6  # of its context, 0.5.17 to 0.5.23
_FLOAT_BYTES: Final = 4
_MOST_PROBES: Final = 4
_TOO_MUCH: Final = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    }
)
_WHITE_SPACE: Final = " \n\n\t "
_MOST_TRIED_TOKENS: Final = 1024

Answer = Reply | TransportError

Verification = Generator[Request, Answer | None, Endpoint]
"""Requests one after another; the answer to each is sent in (None only to begin)."""


def verify(
    url: str,
    api_key: str | None,
    spec: ServerSpec,
    listener: Listener | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
    batch_size: int | None = None,
) -> Endpoint:
    """Return the endpoint at ``url`` if it serves ``spec``.

    Args:
        url: Root of the server, without ``/v1``.
        api_key: Its key, or None.
        spec: What is wanted.
        listener: The listener to verify; None for the one that is there, if the server is on
            this machine.
        timeout_s: How long all requests together may take, in seconds.
        batch_size: Most texts in a request; None if there is no limit.

    Raises:
        ServerMismatchError: It serves something else, or not correctly; the text says what.
        AuthenticationError: The key is missing or wrong.
        ServerUnavailableError: There is no response, the server is not ready, or the listening
            sockets of this machine cannot be read.
    """
    pinned = listener or _listener(url)
    with bounded(timeout_s):
        while True:
            ask = functools.partial(send, url, api_key, timeout_s, pinned)
            found = drive(steps(url, api_key, spec, batch_size), ask)
            # It may have begun to listen only after the first look-up. Then it is not known whether
            # all responses came from the listener that is there now, and it is verified again.
            if pinned is not None or (now := _listener(url)) is None:
                return replace(found, listener=pinned)
            pinned = now


def _listener(url: str) -> Listener | None:
    try:
        return listeners.find(url)
    except OSError as error:
        raise ServerUnavailableError(
            f"Cannot determine which process listens at {url}: the listening sockets of this "
            f"machine cannot be read ({error}). No request was sent. If this process has too many "
            f"open files, raise the limit (ulimit -n); in a sandbox, allow sock_diag (netlink) or "
            f"/proc/net/tcp."
        ) from error


def drive(verification: Verification, send: Callable[[Request], Answer]) -> Endpoint:
    """Return the verified endpoint; ``send`` sends each request of ``verification``."""
    answer: Answer | None = None
    while True:
        try:
            request = verification.send(answer)
        except StopIteration as finished:
            found: Endpoint = finished.value
            return found
        answer = send(request)


def steps(
    url: str, api_key: str | None, spec: ServerSpec, batch_size: int | None = None
) -> Verification:
    """Do as ``verify``, for a driver that sends, and gives all requests together some time."""
    model = model_card.describe(spec.model, spec.revision, task=spec.task)
    if model_files.is_folder(spec.model) or spec.model.casefold() != model.name.casefold():
        model = replace(model, reference=None)  # a folder of that name may be fine-tuned
    ask = functools.partial(_ask, url, time.monotonic(), spec.task)
    entry, listed, of_tei = yield from verify_listing.read_listing(url, spec, ask)
    name, server = str(entry["id"]), str(entry.get("owned_by") or "unknown")
    if spec.task == RERANK:
        verify_listing.check_no_adapter(url, entry, name, server)
    elif server == lengths.GATEWAY:
        name += _AS_THEY_ARE
        ask = functools.partial(ask, starts=True)
    most_texts = None
    if server == TEI:
        most_texts = tei.check_info(url, of_tei, model)
        batch_size = min(batch_size or most_texts, most_texts)
    longest = entry.get("max_model_len")
    limits = [longest]
    told: dict[str, Any] = {}
    if server in (_SGLANG, _OWN):
        told = wire.parse_object((yield from ask(Request(_SERVER_INFO), best_effort=True)))
    on_cpu = told.get("device") == "cpu"
    if server == _SGLANG:
        # A text with more tokens than the server can hold is not refused, but waits forever
        # (0.5.23, tried).
        limits += [told.get("max_total_num_tokens"), _uncut_context(told, longest)]
    described = entry.get("meta")  # llama.cpp's
    if isinstance(described, dict):
        limits.append(described.get("n_ctx"))
    context = min((n for n in limits if isinstance(n, int) and n), default=None)
    # Once per listed model, for a router may send each request to another server.
    probes = min(listed, _MOST_PROBES) or 1
    if spec.task == RERANK:
        found = Endpoint(url, name, 1, context, api_key, server, on_cpu=on_cpu)
        return (yield from verify_scores.steps(found, model, ask, batch_size, probes))
    text = canary.texts(model)[0]
    bodies: list[bytes] = []
    while len(bodies) < probes:
        bodies.append((yield from ask(wire.embed_request(name, [text], None))) or b"")
    vector = _vectors(url, model, name, bodies)[-1]
    if server not in _AS_GIVEN:
        question = wire.embed_request(name, [canary.PROMPT_QUESTION], None)
        yield from ask(question, refused=_ADDS_PROMPTS.format(names=_AS_THEY_ARE))
    counted = None
    if server == TEI or model.end_of_text_id is not None:
        request = tokenizer.tokenize_request(server, name, text)
        counted = yield from ask(request, optional=True)
    if server == TEI:
        tei.check_tokens(url, text, counted, bodies[-1])
    counts_exactly = _check_tokens(url, model, counted, bodies[-1])
    vectors, note = yield from _canary(url, model, name, bodies, ask, batch_size=batch_size)
    found = Endpoint(
        url=url,
        model=name,
        dimensions=len(vector),
        context_tokens=context,
        api_key=api_key,
        server=server,
        canary=vectors,
        counts_exactly=counts_exactly,
        most_texts=most_texts,
        on_cpu=on_cpu,
        notes=(note,) if note else (),
    )
    if server in _AS_GIVEN:
        return found
    return (yield from _with_changes(found, model, of_tei, batch_size))


def _uncut_context(info: dict[str, Any], longest: Any) -> int | None:
    """Return the context within which SGLang never cuts a text, and so loses its end.

    With ``--allow-auto-truncate`` it cuts what is longer than ``max_req_input_len``, which is less
    than its context. What it does is not known if a gateway has closed the route.

    Args:
        info: What it says of itself; empty if it says nothing.
        longest: The context that it lists.
    """
    if info and not info.get("allow_auto_truncate"):
        return None
    longest_uncut = info.get("max_req_input_len")
    if not isinstance(longest_uncut, int) and isinstance(longest, int):
        longest_uncut = longest - _CUT_TAIL_TOKENS
    # Of a context, the client uses all but one token.
    return longest_uncut + 1 if isinstance(longest_uncut, int) else None


def _with_changes(
    endpoint: Endpoint, model: Model, of_tei: dict[str, Any], batch_size: int | None
) -> Verification:
    """Return ``endpoint`` with what the server may do to texts."""
    url, name = endpoint.url, endpoint.model
    trims, trims_note = False, ""
    if not model.trims:
        trims, trims_note = yield from _trims(url, model, name, batch_size)
    if endpoint.server == TEI:
        cuts, cuts_note = of_tei["auto_truncate"], ""
    else:
        cuts, cuts_note = yield from _cuts(url, model, name)
    return replace(
        endpoint,
        trims=trims,
        trims_note=trims_note,
        cuts=cuts,
        cuts_note=cuts_note,
        notes=(*endpoint.notes, *(note for note in (trims_note, cuts_note) if note)),
    )


def _trims(
    url: str, model: Model, name: str, batch_size: int | None
) -> Generator[Request, Answer | None, tuple[bool, str]]:
    """Return whether the server may remove white space at the ends of a text.

    It does if a text has the same vector with white space and without. A server that refuses the
    request gives no such text a vector. No answer, or a limit of the rate, shows nothing: it may,
    and the second value says so.
    """
    text = canary.texts(model)[0]
    pair: list[Input] = [text, f"{_WHITE_SPACE}{text}{_WHITE_SPACE}"]
    vectors: list[canary.Vector] = []
    for part in _parts(pair, batch_size):
        reply = yield from _try(wire.embed_request(name, part, None))
        if isinstance(reply, str):
            note = (
                f"{url} {reply} when it was tried whether it removes white space at the ends of "
                f"texts, so such texts are refused. Make a new object later, which tries it again."
            )
            return True, note
        if reply.status != HTTPStatus.OK:
            return False, ""
        vectors += _vectors(url, model, name, [reply.body], len(part))
    return catalog.cosine(*vectors) > canary.ALIKE, ""


def _cuts(url: str, model: Model, name: str) -> Generator[Request, Answer | None, tuple[bool, str]]:
    """Return whether the server may cut a text that has more tokens than the model reads.

    It is not tried for models of long texts: a text of so many tokens takes a CPU minutes. If it is
    tried in vain, the second value says so.
    """
    most = model.context_tokens
    if most is None or most > _MOST_TRIED_TOKENS:
        return True, ""
    request = wire.embed_request(name, [" ".join(["word"] * 2 * most)], None)
    reply = yield from _try(request)
    if isinstance(reply, str):
        note = (
            f"{url} {reply} when it was tried whether it cuts texts that are too long, so texts "
            f"that may be too long are refused. Make a new object later, which tries it again."
        )
        return True, note
    return reply.status == HTTPStatus.OK, ""


def _try(request: Request) -> Generator[Request, Answer | None, Reply | str]:
    """Return a reply that shows what a server does with a text, or what happened instead.

    A limit of the rate or a failure of the server shows nothing of that. It may be over soon, while
    the result holds for as long as the endpoint is used, so the request is sent twice.
    """
    problem = ""
    for _ in range(2):
        reply = yield request
        if not isinstance(reply, Reply):
            problem = "did not answer" + (f" ({reply.text})" if reply else "")
        elif reply.status == HTTPStatus.OK or reply.status in _TOO_MUCH:
            return reply
        else:
            problem = f"answered {reply.status}"
    return problem


def _canary(
    url: str,
    model: Model,
    name: str,
    bodies: list[bytes],
    ask: Ask,
    *,
    batch_size: int | None,
) -> Generator[Request, Answer | None, tuple[tuple[canary.Vector, ...], str]]:
    """Check the vectors of the canary's texts, and return those of texts that were sent alone.

    The second value says what was not checked; it is empty if everything was.

    Args:
        url: Root of the server.
        model: The model.
        name: The name under which the server serves it.
        bodies: The replies to the first text, alone; those to the other texts are added.
        ask: Sends a request; None for a reply that a limit of the rate withheld.
        batch_size: Most texts in a request; with 1, texts are compared with no batch.
    """
    first = len(bodies) - 1
    texts: list[Input] = [*canary.texts(model)]
    for text in texts[1:]:
        body = yield from ask(wire.embed_request(name, [text], None), limited=True)
        if body is None:
            break  # those that were answered are compared
        bodies.append(body)
    alone = _vectors(url, model, name, bodies)[first:]
    together: list[canary.Vector] = []
    for part in _parts(texts, batch_size) if batch_size != 1 else ():
        body = yield from ask(wire.embed_request(name, part, None), limited=True)
        if body is None:
            break
        together += _vectors(url, model, name, [body], len(part))
    canary.check(url, model, together, alone)
    if (len(alone), len(together)) == (len(texts), 0 if batch_size == 1 else len(texts)):
        return tuple(alone), ""
    note = (
        f"{url} limited the rate (429) while it was verified: of {len(texts)} texts, {len(alone)} "
        f"were embedded alone and {len(together)} in requests of several. So vectors in the wrong "
        f"order, or of another model, may not have been noticed. Make a new object later to verify "
        f"it again."
    )
    return tuple(alone), note


def _parts(texts: list[Input], batch_size: int | None) -> list[list[Input]]:
    size = batch_size or len(texts)
    return [texts[begin : begin + size] for begin in range(0, len(texts), size)]


def _ask(
    url: str,
    began_s: float,
    task: str,
    request: Request,
    *,
    optional: bool = False,
    best_effort: bool = False,
    limited: bool = False,
    starts: bool = False,
    refused: str | None = None,
) -> Generator[Request, Answer | None, bytes | None]:
    """Return the body of a good reply; None where the server has no such route.

    An ``optional`` route that is closed to this key (401 or 403) counts as missing: servers and
    gateways answer that for routes that they do not have, and the embedding itself proves the key.
    With ``best_effort``, anything but a timeout counts as missing; with ``limited``, a limit of the
    rate does (429): the server has just answered a request like this one. A gateway ``starts`` a
    server for the first request that needs one. ``refused`` is the advice for a text that it
    refuses; the default is what to do about its limits. The verification began at ``began_s`` on
    the monotonic clock.
    """
    reply = yield request
    where = f"{url}{request.path}"
    if isinstance(reply, TransportError) and reply.kind == "timeout":
        advice = _STARTS if starts else "The server is busy, still loading or stuck: see its log"
        seconds = round(time.monotonic() - began_s, 1)
        error = ServerUnavailableError(
            f"{where} did not answer within {seconds:g} s. {advice}, and try again later."
        )
        error.is_starting = starts
        raise error
    if isinstance(reply, Reply) and reply.status == HTTPStatus.OK:
        return reply.body
    if best_effort:
        return None
    if limited and isinstance(reply, Reply) and reply.status == HTTPStatus.TOO_MANY_REQUESTS:
        return None
    if isinstance(reply, TransportError) and reply.kind == "changed":
        raise ServerUnavailableError(
            f"No request was sent to {where}: {reply.text}. Check what listens there."
        )
    if not isinstance(reply, Reply):
        why = f" ({reply.text})" if reply is not None else ""
        raise ServerUnavailableError(
            f"No response from {where}{why}. Start the server there, or correct base_url."
        )
    said = wire.message(reply.body)
    if reply.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        if optional:
            return None
        raise wire.unauthorized(reply.status, said, url, task)
    if reply.status in wire.BUSY:
        error = ServerUnavailableError(
            f"{where} answered {reply.status} ({said}): it is not ready. Try again later."
        )
        error.is_starting = starts and _CODE_STARTING in reply.body
        raise error
    gives_rows = request.path in (wire.PATH, *scores.ROUTES)
    if reply.status in wire.NO_ROUTE and (optional or not gives_rows):
        return None  # vLLM and llama.cpp have no /model_info, and a router only the old one
    kind = "a server of a reranker" if task == RERANK else "an embedding server"
    advice = f"Start the server as {kind}, or give the base_url of one."
    if (limited or refused) and reply.status in _TOO_MUCH:
        inputs = request.inputs
        advice = refused or (
            f"It accepted a short text before, and refuses this request of {len(inputs)} texts, "
            f"the longest of {max(map(len, inputs), default=0)} characters. Start it so that it "
            f"accepts several texts in a request, and texts of this length, or lower batch_size."
        )
    raise ServerMismatchError(f"{where} answered {reply.status}: {said}. {advice}")


def _vectors(
    url: str, model: Model, name: str, bodies: list[bytes], count: int = 1
) -> list[canary.Vector]:
    """Return the embeddings in ``bodies``, of ``count`` texts each, once all are checked."""
    try:
        replies = [finish(wire.read_embeddings(body, count)) for body in bodies]
    except BadReplyError as error:
        raise ServerMismatchError(f"{url} returned an invalid embedding: {error}") from error
    vectors = [
        struct.unpack(f"<{len(raw) // _FLOAT_BYTES}f", raw)
        for reply in replies
        for raw in reply.vectors
    ]
    models = {str(reply.model) for reply in replies}
    if len(models) > 1:
        raise ServerMismatchError(
            f"{url} routes requests for {name} to several models: {', '.join(sorted(models))}. "
            f"Put servers of one model behind it, or give the base_url of one of them."
        )
    for vector in vectors:
        _check_vector(url, model, vector, len(vectors[0]))
    return vectors


def _check_vector(url: str, model: Model, vector: canary.Vector, dimensions: int) -> None:
    if model.dimensions not in (None, len(vector)):
        raise ServerMismatchError(
            f"{url} gives vectors of {len(vector)} dimensions; {model.name} has "
            f"{model.dimensions}. It serves another model, or cuts the vectors."
        )
    if len(vector) != dimensions:
        raise ServerMismatchError(
            f"{url} gives vectors of {dimensions} and of {len(vector)} dimensions. If it is a "
            f"router, put servers of one model behind it."
        )
    norm = math.hypot(*vector)
    if not is_unit(norm):
        raise ServerMismatchError(
            f"{url} gives vectors of norm {norm:.4g} instead of 1: they are not normalised, or "
            f"computed wrongly, as in float16. Serve the model in bfloat16 or float32."
        )


def _check_tokens(url: str, model: Model, counted: bytes | None, embedded: bytes) -> bool:
    """Return whether the server's tokenizer gives as many tokens for a text as the server read."""
    if counted is None:
        return False
    if model.end_of_text_id is None:
        return True  # they were compared before, because the server is TEI
    try:
        ids = tokenizer.read_ids(counted)
    except BadReplyError as error:
        raise ServerMismatchError(f"{url}: {error}") from error
    read = wire.prompt_tokens(embedded)
    whole = tokenizer.with_added(ids, model)
    if read == len(whole):
        return True  # sglang-router counts with its own tokenizer, which adds no tokens
    if ids[-1] != whole[-1]:
        raise ServerMismatchError(
            f"{url} appends token {ids[-1]} instead of the end-of-text token "
            f"{model.end_of_text_id} that {model.name} pools. Its tokenizer is out of date: fetch "
            f"the model again."
        )
    if ids != whole:
        raise ServerMismatchError(
            f"{url} begins a text with token {ids[0]}, without the tokens {[*model.start_ids]} "
            f"that {model.name} expects before it. Its tokenizer is out of date: fetch the model "
            f"again."
        )
    if read is not None:
        raise ServerMismatchError(
            f"{url} counted {read} tokens for a text for which its tokenizer returns {len(ids)}: "
            f"the end-of-text token may be missing. Use a server that embeds exactly the tokens of "
            f"its tokenizer."
        )
    return False


def send(
    url: str, api_key: str | None, timeout_s: float, listener: Listener | None, request: Request
) -> Answer:
    """Return the answer to one request, which is sent once.

    Args:
        url: Root of the server.
        api_key: Its key, or None.
        timeout_s: How long it may take, in seconds.
        listener: The listener that the connection must reach, if it is known.
        request: What is sent.

    Raises:
        BadReplyError: The reply is larger than any right one.
    """
    body = None if request.body is None else json.dumps(request.body).encode()
    try:
        found = probe.fetch(url, request.path, body, api_key, timeout_s, listener=listener)
    except probe.NO_ANSWER as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ListenerChangedError):
            return TransportError("changed", str(reason))
        if isinstance(reason, ValueError):
            # The message of urllib for a header that HTTP does not allow repeats the key.
            return TransportError("refused", "the request cannot be sent")
        if isinstance(reason, ReplyTooLargeError):
            raise wire.too_large(reason) from None
        late = isinstance(reason, TimeoutError)
        return TransportError("timeout" if late else "broken", str(reason))
    return Reply(found.status, found.body)

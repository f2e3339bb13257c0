"""Questions to a server besides embeddings: readiness, models, metrics.

The routes are SGLang's. emberd's own servers have all of them, other servers have some. Except for
``fetch``, the functions return None or False if the server cannot be reached, does not answer in
time, or does not have the route.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

from emberd.system import listeners
from emberd.system.bounded_http import BoundedConnection, bounded, read_body, tls_context
from emberd.system.listeners import Listener

PROBE_TIMEOUT_S: Final = 2.0
HEALTH_TIMEOUT_S: Final = 25.0  # SGLang's /health runs one token through the model, up to 20 s
_MAX_BODY_BYTES: Final = 4 * 1024 * 1024

MODELS: Final = "/v1/models"
MODEL_INFO: Final = "/model_info"
SERVER_INFO: Final = "/server_info"
OLD_MODEL_INFO: Final = "/get_model_info"
"""The route of SGLang's router, and of SGLang before 0.5."""
INFO: Final = "/info"
"""The route of Text Embeddings Inference, which has none of the others."""

TEI: Final = "text-embeddings-inference"
"""Kind of server, for one that answers at ``INFO``."""

_NO_ROUTE: Final = (401, 403, 404, 405, 501)
"""Statuses of a server without such a route, or that requires a key for it."""

_CLOSED: Final = (401, 403, 429)
_FAILED: Final = 500

NO_ANSWER: Final = (OSError, http.client.HTTPException, ValueError)
"""What ``fetch`` raises if there is no answer."""


@dataclass(frozen=True, slots=True)
class ProbeReply:
    """Status and body of a response."""

    status: int
    body: bytes

    def json(self) -> Any:
        """Return the parsed body; None if it is not JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


@dataclass(frozen=True, slots=True)
class Activity:
    """A server's own counters; a difference between two readings means that it was used.

    Attributes:
        requests: Requests answered since its start.
        tokens: Tokens read since its start.
        in_flight: Requests in progress or queued.
    """

    requests: float
    tokens: float
    in_flight: float


def get(
    url: str,
    path: str,
    api_key: str | None = None,
    timeout_s: float = PROBE_TIMEOUT_S,
    *,
    listener: Listener | None = None,
) -> ProbeReply | None:
    """Return the reply to ``GET url + path``, with any status; None if there is none."""
    try:
        return fetch(url, path, None, api_key, timeout_s, listener=listener)
    except NO_ANSWER:
        return None


def fetch(
    url: str,
    path: str,
    body: bytes | None,
    api_key: str | None,
    timeout_s: float,
    *,
    listener: Listener | None = None,
) -> ProbeReply:
    """Return the reply to a GET, or to a POST of a JSON body, with any status.

    Args:
        url: Root of the server.
        path: The route.
        body: JSON to POST; None for a GET.
        api_key: The key to send, or None.
        timeout_s: Time limit of all steps together, in seconds.
        listener: The listener that the connection must reach before anything is sent; None if
            not known.

    Raises:
        OSError: There is no answer, or another socket listens there; the other errors of
            ``NO_ANSWER`` are raised too.
    """
    request = urllib.request.Request(url + path, body)  # noqa: S310 - root_url lets only http(s) in
    if body is not None:
        request.add_header("Content-Type", "application/json")
    if api_key:
        request.add_header("Authorization", f"Bearer {api_key}")
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect(), _bounded(listener)]
    if is_loopback(url) or listener is not None:
        handlers.append(urllib.request.ProxyHandler({}))
    opener = urllib.request.build_opener(*handlers)
    with bounded(timeout_s):
        try:
            with opener.open(request, timeout=timeout_s) as response:
                return ProbeReply(response.status, read_body(response, _MAX_BODY_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                failed: Any = error.fp  # the same, with another status
                return ProbeReply(error.code, read_body(failed, _MAX_BODY_BYTES))


def is_loopback(url: str) -> bool:
    """Return whether ``url`` names this machine, for which no proxy is used."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        # Systems accept 127.1 and 0 as addresses too; ip_address does not.
        address = ip_address(host if ":" in host else socket.inet_aton(host))
    except (ValueError, OSError):
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def _bounded(listener: Listener | None) -> urllib.request.BaseHandler:
    """Return a handler whose connections are bounded, and used only if they reach ``listener``."""

    class Connection(BoundedConnection):
        def connect(self) -> None:
            super().connect()
            if listener is not None:
                listeners.check(self.sock, listener)

    class TlsConnection(http.client.HTTPSConnection, Connection):
        """The order of the bases puts the check before the handshake."""

    class Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Connection, req)

        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(TlsConnection, req, context=tls_context())

    return Handler()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow no redirect, because the key would be sent to another address."""


def model_path(
    url: str, api_key: str | None = None, *, listener: Listener | None = None
) -> str | None:
    """Return the path or name from which the server loaded its model; None if it does not say."""
    for route in (MODEL_INFO, OLD_MODEL_INFO):
        info = _json(get(url, route, api_key, listener=listener))
        path = info.get("model_path") if isinstance(info, dict) else None
        if isinstance(path, str):
            return path
    listed = entries(_json(get(url, MODELS, api_key, listener=listener)))
    listed = listed or models_of_info(url, api_key, listener=listener)
    root = listed[0].get("root") if listed else None
    return root if isinstance(root, str) else None


def entries(listed: Any) -> list[dict[str, Any]]:
    """Return the models in the parsed reply to ``MODELS``; empty if there are none."""
    data = listed.get("data") if isinstance(listed, dict) else None
    found = data if isinstance(data, list) else []
    return [entry for entry in found if isinstance(entry, dict) and entry.get("id")]


def models_of_info(
    url: str, api_key: str | None = None, *, listener: Listener | None = None
) -> list[dict[str, Any]]:
    """Return the model that Text Embeddings Inference serves, as ``entries`` would."""
    return entries_of_info(_json(get(url, INFO, api_key, listener=listener)))


def entries_of_info(info: Any) -> list[dict[str, Any]]:
    """Return the model in the parsed reply to ``INFO`` as ``entries`` would; empty if none.

    Older servers have no name but the one from which they loaded the model.
    """
    if not isinstance(info, dict) or not (info.get("model_id") and "model_type" in info):
        return []
    loaded = info["model_id"]
    context = info.get("max_input_length")
    named = info.get("served_model_name") or loaded
    return [{"id": named, "root": loaded, "owned_by": TEI, "max_model_len": context}]


def _json(reply: ProbeReply | None) -> Any:
    return reply.json() if reply is not None and reply.status == http.client.OK else None


def is_deterministic(
    url: str, api_key: str | None = None, *, listener: Listener | None = None
) -> bool | None:
    """Return whether the server reports that a text gets the same vector in any batch.

    SGLang reports it in all supported versions; a busy scheduler answers after its batch.

    Returns:
        None if the route did not answer in time, failed, or is closed to this key.
    """
    reply = get(url, SERVER_INFO, api_key, HEALTH_TIMEOUT_S, listener=listener)
    if reply is None or reply.status in _CLOSED or reply.status >= _FAILED:
        return None
    info = _json(reply)
    return isinstance(info, dict) and info.get("enable_deterministic_inference") is True


def readiness(url: str, *, listener: Listener | None = None) -> bool | None:
    """Return what ``/ready`` says; None, that is unknown, if the server has no such route.

    SGLang has the route since 0.5.20. An earlier version that was started with a key answers a
    request for an unknown route with 401, as other servers do with 403, 404, 405 or 501. No key is
    sent: the route is open on all servers that have it.
    """
    reply = get(url, "/ready", listener=listener)
    if reply is None:
        return False
    return None if reply.status in _NO_ROUTE else reply.status == http.client.OK


def is_ready(url: str, *, listener: Listener | None = None) -> bool:
    """Return whether the server accepts requests.

    Without ``/ready``, ``/health`` is used, which takes SGLang 1 to 20 s; callers that must not
    wait use ``readiness``.
    """
    ready = readiness(url, listener=listener)
    return is_healthy(url, listener=listener) if ready is None else ready


def is_healthy(url: str, *, listener: Listener | None = None) -> bool:
    """Return whether the model works; the server runs one token through it.

    The route is open on all versions of SGLang, so no key is sent.
    """
    reply = get(url, "/health", timeout_s=HEALTH_TIMEOUT_S, listener=listener)
    return reply is not None and reply.status == http.client.OK


METRICS: Final = "/metrics"
RUNNING: Final = b"sglang:num_running_reqs"
QUEUED: Final = b"sglang:num_queue_reqs"
REQUESTS: Final = b"sglang:num_requests_total"
TOKENS: Final = b"sglang:prompt_tokens_total"
# A line of Prometheus' text format: name, labels (a quoted value may contain anything), value. Not
# compiled here: clients, which import this module, never read metrics.
_SAMPLE: Final = rb'(?m)^(%b)[ \t]*(?:(\{(?:[^"}\n]|"(?:\\.|[^"\\\n])*")*\})|[ \t])[ \t]*(\S+)'


def activity(url: str, api_key: str | None, *, listener: Listener | None = None) -> Activity | None:
    """Return the server's counters; None if it shows none."""
    sums = sums_of(samples(url, (RUNNING, QUEUED, REQUESTS, TOKENS), api_key, listener=listener))
    if not any(name in sums for name in (RUNNING, QUEUED, REQUESTS)):
        return None
    return Activity(
        requests=sums.get(REQUESTS, 0.0),
        tokens=sums.get(TOKENS, 0.0),
        in_flight=sums.get(RUNNING, 0.0) + sums.get(QUEUED, 0.0),
    )


def samples(
    url: str,
    names: Iterable[bytes],
    api_key: str | None = None,
    *,
    listener: Listener | None = None,
) -> list[tuple[bytes, bytes, float]]:
    """Return name, labels and value of a server's metrics with these names.

    None are returned if it does not answer, or if a value is not a number.
    """
    reply = get(url, METRICS, api_key, listener=listener)
    if reply is None or reply.status != http.client.OK:
        return []
    found = re.findall(_SAMPLE % b"|".join(map(re.escape, names)), reply.body)
    try:
        return [(name, labels, float(value)) for name, labels, value in found]
    except ValueError:
        return []


def sums_of(found: Iterable[tuple[bytes, bytes, float]]) -> dict[bytes, float]:
    """Return the sum of the samples of each name, whatever their labels."""
    sums: dict[bytes, float] = {}
    for name, _, value in found:
        sums[name] = sums.get(name, 0.0) + value
    return sums

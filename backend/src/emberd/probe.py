"""What every server answers besides embeddings: readiness, names, counters.

The routes are SGLang's; our own servers speak them too, and others speak some. Nothing here
raises for a server that is away, slow or of another kind: the answer is then None or False.
"""

from __future__ import annotations

import functools
import http.client
import json
import socket
import urllib.error
import urllib.request
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

from emberd.system import listeners
from emberd.system.listeners import Listener

PROBE_TIMEOUT_S: Final = 2.0
HEALTH_TIMEOUT_S: Final = 25.0  # SGLang's /health waits for a token from the model, up to 20 s
_MAX_BODY_BYTES: Final = 4 * 1024 * 1024

MODELS: Final = "/v1/models"
MODEL_INFO: Final = "/model_info"
OLD_MODEL_INFO: Final = "/get_model_info"
"""What SGLang's router answers to this day, and SGLang did before 0.5."""

_NO_ROUTE: Final = frozenset(
    {
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.NOT_FOUND,
        HTTPStatus.METHOD_NOT_ALLOWED,
        HTTPStatus.NOT_IMPLEMENTED,
    }
)
"""Statuses of a server that has no such route, or does not tell callers without a key."""

NO_ANSWER: Final = (OSError, http.client.HTTPException, ValueError)
"""What ``fetch`` raises when there is no answer."""


@dataclass(frozen=True, slots=True)
class Reply:
    """Status and body of an answer."""

    status: int
    body: bytes

    def json(self) -> Any:
        """Return the body as JSON, or None when it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


@dataclass(frozen=True, slots=True)
class Activity:
    """A server's own counters: any difference between two readings is use.

    Attributes:
        requests: Requests it has answered since its start.
        tokens: Tokens it has read since its start.
        in_flight: Requests that it is working on, or that wait in it.
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
) -> Reply | None:
    """Return the reply to ``GET url + path``, whatever its status; None when there is none."""
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
) -> Reply:
    """Return the reply to a GET, or to a POST of a JSON body, whatever its status.

    Args:
        url: Root of the server.
        path: The route.
        body: JSON to POST; None for a GET.
        api_key: The key to send, or None.
        timeout_s: How long each step may take, in seconds.
        listener: The listener that the connection must lead to before anything is sent; None
            where none is known.

    Raises:
        OSError: There is no answer, or another listener is there; also the other errors of
            ``NO_ANSWER``.
    """
    request = urllib.request.Request(url + path, body)  # noqa: S310 - root_url lets only http(s) in
    if body is not None:
        request.add_header("Content-Type", "application/json")
    if api_key:
        request.add_header("Authorization", f"Bearer {api_key}")
    handlers: list[urllib.request.BaseHandler] = [_Stay()]
    if listener is not None:
        handlers.append(_Pinned(listener))
    if is_loopback(url) or listener is not None:
        handlers.append(urllib.request.ProxyHandler({}))
    opener = urllib.request.build_opener(*handlers)
    try:
        with opener.open(request, timeout=timeout_s) as response:
            return Reply(response.status, response.read(_MAX_BODY_BYTES))
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, error.read(_MAX_BODY_BYTES))


def is_loopback(url: str) -> bool:
    """Return whether ``url`` names this machine, where no proxy belongs in between."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        # Systems take 127.1 and 0 for addresses too; ip_address does not.
        address = ip_address(host if ":" in host else socket.inet_aton(host))
    except (ValueError, OSError):
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


class _Connection(http.client.HTTPConnection):
    """A connection that leads to the expected listener, or is not used."""

    expected: Listener

    def connect(self) -> None:
        super().connect()
        listeners.check(self.sock, self.expected)


class _TlsConnection(http.client.HTTPSConnection, _Connection):
    """Likewise; the order of the bases puts the check before the TLS handshake."""


class _Pinned(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    def __init__(self, listener: Listener) -> None:
        super().__init__()
        self._listener = listener

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(self._opened, _Connection), req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(self._opened, _TlsConnection), req)

    def _opened(self, kind: type[_Connection], host: str, **options: Any) -> _Connection:
        connection = kind(host, **options)
        connection.expected = self._listener
        return connection


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow no redirect: the key would be sent to the address that the server names."""


def models(
    url: str, api_key: str | None = None, *, listener: Listener | None = None
) -> list[dict[str, Any]]:
    """Return what the server lists as its models; empty when it lists none."""
    return entries(_good(get(url, MODELS, api_key, listener=listener)))


def model_path(
    url: str, api_key: str | None = None, *, listener: Listener | None = None
) -> str | None:
    """Return the path or name from which the server loaded its model; None when it does not say."""
    for route in (MODEL_INFO, OLD_MODEL_INFO):
        told = _good(get(url, route, api_key, listener=listener))
        path = told.get("model_path") if isinstance(told, dict) else None
        if isinstance(path, str):
            return path
    first = next(iter(models(url, api_key, listener=listener)), {})
    root = first.get("root")
    return root if isinstance(root, str) else None


def entries(listed: Any) -> list[dict[str, Any]]:
    """Return the models in the parsed answer to ``MODELS``; empty when there are none."""
    data = listed.get("data") if isinstance(listed, dict) else None
    found = data if isinstance(data, list) else []
    return [entry for entry in found if isinstance(entry, dict) and entry.get("id")]


def _good(reply: Reply | None) -> Any:
    return reply.json() if reply is not None and reply.status == http.client.OK else None


def readiness(url: str, *, listener: Listener | None = None) -> bool | None:
    """Return what ``/ready`` says; None where the server has no such route, so that it is unknown.

    SGLang has the route since 0.5.20. An earlier version that was started with a key answers a
    request for an unknown route with 401, as other servers do with 403, 404, 405 or 501. No key is
    sent: the route is open on all servers that have it.
    """
    reply = get(url, "/ready", listener=listener)
    if reply is None:
        return False
    return None if reply.status in _NO_ROUTE else reply.status == http.client.OK


def is_ready(url: str, *, listener: Listener | None = None) -> bool:
    """Return whether the server takes requests.

    A server without ``/ready`` is asked for ``/health``, which takes SGLang 1 to 20 s: callers that
    must not wait use ``readiness``.
    """
    ready = readiness(url, listener=listener)
    return is_healthy(url, listener=listener) if ready is None else ready


def is_healthy(url: str, *, listener: Listener | None = None) -> bool:
    """Return whether the model answers: the server runs one token through it for this.

    The route is open on all versions of SGLang, so no key is sent.
    """
    reply = get(url, "/health", timeout_s=HEALTH_TIMEOUT_S, listener=listener)
    return reply is not None and reply.status == http.client.OK


def activity(url: str, api_key: str | None, *, listener: Listener | None = None) -> Activity | None:
    """Return the server's counters, or None when it has none to show."""
    reply = get(url, "/metrics", api_key, listener=listener)
    if reply is None or reply.status != http.client.OK:
        return None
    return _parse_metrics(reply.body.decode("utf-8", "replace"))


_IN_FLIGHT: Final = ("sglang:num_running_reqs", "sglang:num_queue_reqs")
_REQUESTS: Final = "sglang:num_requests_total"
_TOKENS: Final = "sglang:prompt_tokens_total"


def _parse_metrics(text: str) -> Activity | None:
    # Imported late: clients, which import this module, never read metrics.
    from prometheus_client.parser import text_string_to_metric_families

    sums: dict[str, float] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    except ValueError:
        return None
    if not any(name in sums for name in (*_IN_FLIGHT, _REQUESTS)):
        return None
    return Activity(
        requests=sums.get(_REQUESTS, 0.0),
        tokens=sums.get(_TOKENS, 0.0),
        in_flight=sum(sums.get(name, 0.0) for name in _IN_FLIGHT),
    )

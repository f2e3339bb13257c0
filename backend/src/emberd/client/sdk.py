"""The openai SDK: how its clients are made and called so that nothing but our request leaves.

It reads a key, an organisation, a project and further headers from the user's environment, and
which variables it reads differs from version to version. So headers are let through by a list of
those that are needed, at the last moment before they are sent.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, Final

from emberd.client.plain import CONNECT_S, KEEP_IDLE_S, NO_KEY
from emberd.client.protocol import Ask, Reply, Trouble
from emberd.client.sockets import Sockets
from emberd.endpoint import Endpoint, root_url
from emberd.errors import BadReplyError, SettingError
from emberd.probe import is_loopback
from emberd.system.listeners import ListenerChangedError

_AGENT: Final = "emberd"
_JSON: Final = "application/json"
_NEEDED_HEADERS: Final = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "content-length",
        "content-type",
        "host",
        "transfer-encoding",
    }
)
_API: Final = "/v1"
# Of the environment only the certificates count for another address of this machine.
_NO_PROXIES: Final = {"http://": None, "https://": None, "all://": None}

# httpx's and httpx2's exceptions have the same names.
_NOT_CONNECTED: Final = {"ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol"}
_TOO_SLOW: Final = {"TimeoutException", "TimeoutError"}
_BROKEN_OFF: Final = {"RequestError", "APIConnectionError", "OSError"}


def connect(endpoint: Endpoint, connections: int, sockets: Sockets) -> tuple[Any, Any]:
    """Return an ``OpenAI`` for ``endpoint``, and the HTTP client below it."""

    def prepare(request: Any) -> None:
        clean(request.headers, endpoint.api_key)
        request.extensions["trace"] = sockets.note

    openai = _openai()
    http = openai.DefaultHttpxClient(**_http_options(endpoint, connections, prepare))
    return _bare(openai.OpenAI)(**_sdk_options(endpoint, http)), http


def aconnect(endpoint: Endpoint, connections: int, sockets: Sockets) -> tuple[Any, Any]:
    """Return an ``AsyncOpenAI`` for ``endpoint``, and the HTTP client below it."""

    async def prepare(request: Any) -> None:
        clean(request.headers, endpoint.api_key)
        request.extensions["trace"] = sockets.anote

    openai = _openai()
    http = openai.DefaultAsyncHttpxClient(**_http_options(endpoint, connections, prepare))
    return _bare(openai.AsyncOpenAI)(**_sdk_options(endpoint, http)), http


def call(client: Any, ask: Ask, timeout_s: float) -> Callable[[], Any]:
    """Return the call that sends ``ask`` and gives an unread response.

    Args:
        client: An ``OpenAI``, or an ``AsyncOpenAI``, whose call is to be awaited.
        ask: The request.
        timeout_s: How long each of its steps may take, in seconds.
    """
    timeout = _httpx().Timeout(timeout_s, connect=min(timeout_s, CONNECT_S))
    options: dict[str, Any] = {"timeout": timeout, "max_retries": 0}
    if ask.path.startswith(f"{_API}/"):
        path = ask.path.removeprefix(_API)
    else:
        path = root_url(str(client.base_url)) + ask.path
    method = client.get if ask.body is None else functools.partial(client.post, body=ask.body)
    # The raw response: the SDK's own objects hold each number of a vector as a Python float.
    return functools.partial(method, path, cast_to=_httpx().Response, options=options, stream=True)


def reply(response: Any, body: bytes) -> Reply:
    """Return what ``response`` says."""
    return Reply(response.status_code, body, response.headers.get("retry-after"))


def answer_of(error: Exception) -> Reply | Trouble:
    """Return what an exception of the SDK, or of httpx below it, means.

    Raises:
        BadReplyError: The answer cannot be unpacked.
        SettingError: A header of a client that was handed in is not allowed in HTTP.
        Exception: ``error`` itself, when it is no matter of the network.
    """
    openai = _openai()
    if isinstance(error, openai.APIStatusError):
        return reply(error.response, error.response.content)
    cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else None
    root = cause or error
    if isinstance(root, ListenerChangedError):
        return Trouble("changed", str(root))
    names = {kind.__name__ for kind in type(root).__mro__}
    text = str(root) or type(root).__name__
    if "DecodingError" in names:
        raise BadReplyError(
            f"The reply cannot be unpacked ({text}). No vector of it is used; look at what "
            f"answers at this address, or which proxy stands before it."
        ) from error
    if "Illegal header" in text or "UnicodeEncodeError" in names:
        # What is said of such a header repeats it, and it may be the key. Nothing was sent.
        raise SettingError(
            "The request cannot be sent: a header, or the key in one, has characters that HTTP "
            "does not allow. Correct the api_key or the headers of the client handed in."
        ) from None
    if names & _NOT_CONNECTED:
        return Trouble("refused", text)
    if names & _TOO_SLOW:
        return Trouble("timeout", text)
    if names & _BROKEN_OFF or cause is not None:
        return Trouble("broken", text)
    raise error


def clean(headers: Any, api_key: str | None) -> None:
    """Leave in ``headers`` (httpx's) only what is needed, and put our own key in."""
    for name in set(headers) - _NEEDED_HEADERS:
        del headers[name]
    headers["user-agent"] = _AGENT
    headers["authorization"] = f"Bearer {api_key or NO_KEY}"


def load() -> None:
    """Import what the first request would import."""
    openai = _openai()
    _ = _httpx(), openai.AsyncOpenAI, openai.DefaultAsyncHttpxClient


def _openai() -> Any:
    # Imported at first use: it takes half a second, and a process that only asks for a server's
    # address never needs it.
    return importlib.import_module("openai")


@functools.cache
def _httpx() -> Any:
    kinds = _openai().DefaultHttpxClient.__mro__
    roots = (kind.__module__.partition(".")[0] for kind in kinds)
    return importlib.import_module(next(root for root in roots if root != "openai"))


@functools.cache
def _bare(kind: Any) -> Any:
    """Return ``kind``, a client of the SDK, with none of the headers that it would add.

    Further headers of the user's environment may stand in the place of ours, or be such that no
    request can be made with them: the list of those that are needed would come too late.
    """
    headers = {"Accept": _JSON, "Content-Type": _JSON, "User-Agent": _AGENT}
    return type(kind.__name__, (kind,), {"default_headers": property(lambda _: dict(headers))})


def _http_options(endpoint: Endpoint, connections: int, prepare: Any) -> dict[str, Any]:
    own_machine = is_loopback(endpoint.url)
    direct = {"mounts": _NO_PROXIES} if endpoint.listener is not None and not own_machine else {}
    return {
        **direct,
        "trust_env": not own_machine,
        # Without TLS nobody's certificate is looked at; reading the authorities' takes longer than
        # a query does.
        "verify": not (own_machine and endpoint.url.startswith("http://")),
        # A redirect would carry the key to wherever the answer points.
        "follow_redirects": False,
        "limits": _httpx().Limits(
            max_keepalive_connections=connections, keepalive_expiry=KEEP_IDLE_S
        ),
        "event_hooks": {"request": [prepare]},
    }


def _sdk_options(endpoint: Endpoint, http: Any) -> dict[str, Any]:
    return {
        "api_key": endpoint.api_key or NO_KEY,
        "base_url": endpoint.base_url,
        "http_client": http,
        "max_retries": 0,
    }

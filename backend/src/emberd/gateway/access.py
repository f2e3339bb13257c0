"""Who may ask the gateway: the ASGI middleware in front of its routes.

Over TCP every user of the machine can connect, and so can every web page in a browser on it. Users
need the key. Pages are refused by their headers, because a browser may also be made to send a key:
a page with a rebound DNS name shows it in ``Host``, any other page in ``Origin`` or
``Sec-Fetch-Site``. Over the Unix socket the kernel tells which user connects; that user may forward
it to a TCP port, where pages reach it, so they are refused there too.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Callable, Collection
from contextlib import suppress
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from emberd.gateway.api_bodies import ErrorReply
from emberd.gateway.metrics import GatewayMetrics
from emberd.probe import is_loopback
from emberd.serving import exchange
from emberd.serving.connections import STATE, admit

_PROBES: Final = ("/health", "/ready")
"""Answered for any host name: they say one bit, and orchestrators send names of their own."""

_OPEN: Final = (*_PROBES, "/metrics")
"""Answered without a key, as by emberd's own server."""

PAGE: Final = "/"
"""The path of the page: without a key, and only for browsers on this machine."""

_SAME_SITE: Final = (b"", b"none", b"same-origin")
_LABEL: Final = re.compile(r"(?:[\w-]+(?::\d+)?)?")  # of a host name, with a port; or nothing
_PEER: Final = struct.Struct("3i")  # pid, uid, gid
_ROOT: Final = 0


class _Refusal(NamedTuple):
    status: HTTPStatus
    reason: str


_FORBIDDEN: Final = _Refusal(HTTPStatus.FORBIDDEN, "page")
_FULL: Final = _Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "connections")
_REMOTE: Final = _Refusal(HTTPStatus.FORBIDDEN, "remote")
_NO_KEY: Final = _Refusal(HTTPStatus.UNAUTHORIZED, "key")


class Access:
    """The middleware.

    Args:
        app: The routes.
        keys: The keys of which each request over TCP must have one.
        hosts: Names that ``Host`` may have, besides IP addresses and ``localhost``.
        metrics: Counts what is refused.
        is_draining: Whether connections are to be closed after their replies.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Collection[str],
        hosts: Collection[str],
        metrics: GatewayMetrics,
        is_draining: Callable[[], bool],
    ) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]
        self._hosts = {"localhost", *(host.casefold() for host in hosts)}
        self._metrics = metrics
        self._is_draining = is_draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if self._is_draining():
            send = exchange.closing(send)
        path, peer = scope["path"], _socket(scope)
        is_unix = peer is not None and peer.family == socket.AF_UNIX
        if problem := self._why_foreign(scope, path, is_unix=is_unix):
            return await self._refuse(_FORBIDDEN, problem, scope, receive, send)
        if path == PAGE and not is_unix and not _is_from_here(scope, peer):
            problem = (
                "The page is only for browsers on this machine, at 127.0.0.1 or localhost. From "
                "another machine, forward the port: ssh -L PORT:127.0.0.1:PORT HOST, or kubectl "
                "port-forward. A published port of a container does not lead to it: run the "
                "container in the network of the host, with --host 127.0.0.1."
            )
            return await self._refuse(_REMOTE, problem, scope, receive, send)
        if (is_unix and _is_own_user(peer)) or exchange.has_key(scope, self._keys):
            if admit(scope):
                return await self._app(scope, receive, send)
            problem = "Too many connections are open. Try again."
            return await self._refuse(_FULL, problem, scope, receive, send)
        if path in _OPEN or path == PAGE:
            return await self._app(scope, receive, exchange.closing(send))
        problem = "The key is missing or wrong. Send it as Authorization: Bearer KEY."
        return await self._refuse(_NO_KEY, problem, scope, receive, send)

    def _why_foreign(self, scope: Scope, path: str, *, is_unix: bool) -> str | None:
        """Return why a request may be a web page's; None if it is not."""
        host = exchange.header(scope, b"host").decode("latin-1")
        is_known = self._is_known(host, accepts_any_label=is_unix)
        if path not in _PROBES and not is_known:
            return (
                f"Host {host!r:.120} is neither an IP address nor localhost. If it is a name of "
                f"this gateway, start `emberd serve` with --allow-host."
            )
        origin = exchange.header(scope, b"origin").decode("latin-1")
        site = exchange.header(scope, b"sec-fetch-site").lower()
        is_own = not origin or (_place(origin) == host and is_known)
        if not is_own or site not in _SAME_SITE:
            return "Requests of web pages from other origins are refused."
        return None

    def _is_known(self, host: str, *, accepts_any_label: bool) -> bool:
        # Clients of a Unix socket need no name, and send any word or none. A rebound name is one of
        # the public DNS, which has a dot.
        if accepts_any_label and _LABEL.fullmatch(host):
            return True
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        with suppress(ValueError):
            ip_address(name)
            return True
        return name.casefold() in self._hosts

    async def _refuse(
        self, why: _Refusal, message: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._metrics.refused.labels(why.reason).inc()
        error = ErrorReply.saying(message, why.status, why.reason)
        reply = exchange.json_response(error.body, why.status)
        reply.headers.update(error.headers)
        if why is _NO_KEY:
            reply.headers["www-authenticate"] = "Bearer"
        await reply(scope, receive, exchange.closing(send, receive))


def _place(origin: str) -> str | None:
    """Return the host and port of an origin; None if it is not a URL."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _socket(scope: Scope) -> Any:
    connection = scope.get("state", {}).get(STATE)
    return None if connection is None else connection.transport.get_extra_info("socket")


def _is_from_here(scope: Scope, peer: Any) -> bool:
    """Return whether a client is on this machine, and has its address for this machine."""
    if peer is None:
        return False
    address = ip_address(peer.getpeername()[0])
    address = getattr(address, "ipv4_mapped", None) or address
    host = exchange.header(scope, b"host").decode("latin-1")
    # A proxy on this machine connects from it too, but with the name that its clients use.
    return address.is_loopback and is_loopback(f"//{host}")


def _is_own_user(peer: Any) -> bool:
    """Return whether the other end of a Unix socket is this user or root."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return False  # the key decides
    _, user, _ = _PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, option, _PEER.size))
    return user in (os.geteuid(), _ROOT)

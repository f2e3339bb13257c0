"""Sending one request, and returning its answer or why there is none.

Requests are sent by threads: to a server of this machine through ``loopback``, to others through
the openai SDK. The SDK is imported at first use. Its retries, redirects and parsing are off: what
is sent again, and what an answer means, is decided elsewhere. It uses httpx or httpx2, depending
on its version; only what both offer is used here.

The SDK reads a key, an organisation, a project and more headers from the user's environment, and
which variables it reads differs between versions. So only the headers on a list of needed ones are
let through, at the last moment before they are sent.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import aclosing, closing, suppress
from http import HTTPStatus
from typing import Any, Final

from emberd.client import loopback
from emberd.client.event_loops import in_thread
from emberd.client.loopback import CONNECT_S, KEEP_IDLE_S, NO_KEY, LoopbackSession
from emberd.client.sockets import Sockets, check_order, reply_order
from emberd.client.wire import (
    MOST_BYTES,
    Reply,
    Request,
    TransportError,
    check_encoding,
    too_large,
)
from emberd.endpoint import Endpoint, root_url
from emberd.errors import EmberdError, SettingError
from emberd.probe import is_loopback
from emberd.system import background, fork
from emberd.system.bounded_http import (
    ERROR_BYTES,
    Body,
    Exchange,
    ReplyTooLargeError,
    bounded,
    current,
)
from emberd.system.listeners import ListenerChangedError

_AGENT: Final = "emberd"
_JSON: Final = "application/json"
_PLAIN: Final = "identity"
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
_GRACE_S: Final = 0.5
"""How much longer than its exchange a thread is waited for, so that what ended it is known."""
# For an address of this machine, of the environment only the certificates apply.
_NO_PROXIES: Final = {"http://": None, "https://": None, "all://": None}

# httpx's and httpx2's exceptions have the same names.
_NOT_CONNECTED: Final = {"ConnectError", "ConnectTimeout", "ProxyError", "UnsupportedProtocol"}
_TOO_SLOW: Final = {"TimeoutException", "TimeoutError"}
_BROKEN_OFF: Final = {"RequestError", "APIConnectionError", "OSError"}

# ---------------------------------------------------------------- the openai SDK


def clean(headers: Any, api_key: str | None) -> None:
    """Remove from ``headers`` (httpx's) all but the needed ones, and set our own key."""
    for name in set(headers) - _NEEDED_HEADERS:
        del headers[name]
    headers["user-agent"] = _AGENT
    headers["accept-encoding"] = _PLAIN
    headers["authorization"] = f"Bearer {api_key or NO_KEY}"


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
def _client_without_headers() -> Any:
    """Return ``openai.OpenAI`` without the headers that it would add.

    Headers from the user's environment may replace ours, or make every request fail: to clean
    them before they are sent would be too late.
    """
    headers = {"Accept": _JSON, "Content-Type": _JSON, "User-Agent": _AGENT}
    default = property(lambda _: dict(headers))
    return type("OpenAI", (_openai().OpenAI,), {"default_headers": default})


def _open_sdk(endpoint: Endpoint, connections: int) -> tuple[Any, Any]:
    """Return a client of the SDK, and the HTTP client that it uses.

    Args:
        endpoint: Where it sends.
        connections: How many idle connections it keeps.
    """
    sockets = Sockets(endpoint.listener)

    def prepare(request: Any) -> None:
        clean(request.headers, endpoint.api_key)
        request.extensions["trace"] = sockets.note

    own_machine = is_loopback(endpoint.url)
    direct = {"mounts": _NO_PROXIES} if endpoint.listener is not None and not own_machine else {}
    http = _openai().DefaultHttpxClient(
        **direct,
        trust_env=not own_machine,
        # Without TLS no certificate is verified; reading the certificate authorities takes longer
        # than a query does.
        verify=not (own_machine and endpoint.url.startswith("http://")),
        # A redirect would send the key to any address in the answer.
        follow_redirects=False,
        limits=_httpx().Limits(max_keepalive_connections=connections, keepalive_expiry=KEEP_IDLE_S),
        event_hooks={"request": [prepare], "response": [_check_status]},
    )
    client = _client_without_headers()(
        api_key=endpoint.api_key or NO_KEY,
        base_url=endpoint.base_url,
        http_client=http,
        max_retries=0,
    )
    return client, http


def _sdk_call(client: Any, request: Request, timeout_s: float) -> Callable[[], Any]:
    """Return the call that sends ``request`` and returns an unread response.

    Args:
        client: An ``OpenAI``, or an ``AsyncOpenAI``, whose call is awaited.
        request: The request.
        timeout_s: How long each of its steps may take, in seconds.
    """
    timeout = _httpx().Timeout(timeout_s, connect=min(timeout_s, CONNECT_S))
    options: dict[str, Any] = {
        "timeout": timeout,
        "max_retries": 0,
        "headers": {"Accept-Encoding": _PLAIN},
    }
    if request.path.startswith(f"{_API}/"):
        path = request.path.removeprefix(_API)
    else:
        path = root_url(str(client.base_url)) + request.path
    method = client.get
    if request.body is not None:
        method = functools.partial(client.post, body=request.body)
    # The raw response: the SDK's own objects hold each number of a vector as a Python float.
    return functools.partial(method, path, cast_to=_httpx().Response, options=options, stream=True)


def _reply(response: Any, body: bytes) -> Reply:
    return Reply(response.status_code, body, response.headers.get("retry-after"))


class _FailedError(Exception):
    """A reply with another status than 200, whose body was read."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


# The SDK reads the whole body of a reply that reports an error, however large, and unpacks it.


def _check_status(response: Any) -> None:
    if response.status_code != HTTPStatus.OK:
        raise _FailedError(_read_reply(response, MOST_BYTES))


def _read_reply(response: Any, most_bytes: int) -> Reply:
    """Return the reply of a response that was not read, as it came: nothing is unpacked."""
    body, exchange = _empty_body(response, most_bytes), current()
    for piece in response.iter_raw():
        if exchange is not None:
            exchange.left_s()  # the streams of a client passed in know no deadline
        if not body.add(piece):
            break
    return _reply(response, b"".join(body))


def _empty_body(response: Any, most_bytes: int) -> Body:
    check_order()
    check_encoding(response.status_code, response.headers.get("content-encoding"))
    return Body(most_bytes, response.status_code)


def _answer_of(error: Exception) -> Reply | TransportError:
    """Return what an exception of the SDK, or of httpx below it, means.

    Raises:
        BadReplyError: The reply is too large or compressed.
        EmberdError: The interpreter exits.
        SettingError: A header of a client that was passed in is not allowed in HTTP.
        Exception: ``error`` itself, when it is not about the network.
    """
    openai = _openai()
    if isinstance(error, openai.APIStatusError):  # of a client passed in
        return _reply(error.response, error.response.content[:ERROR_BYTES])
    cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else None
    root = cause or error
    if isinstance(root, _FailedError):
        return root.reply
    if isinstance(root, EmberdError):
        raise root  # raised by our hooks
    if isinstance(root, ListenerChangedError):
        return TransportError("changed", str(root))
    if isinstance(root, ReplyTooLargeError):
        raise too_large(root) from None
    names = {kind.__name__ for kind in type(root).__mro__}
    text = str(root) or type(root).__name__
    if "Illegal header" in text or "UnicodeEncodeError" in names:
        # The message of such an error repeats the header, which may be the key. The request was
        # not sent.
        raise SettingError(
            "The request cannot be sent: a header, or the key in one, has characters that HTTP "
            "does not allow. Correct the api_key or the headers of the client passed in."
        ) from None
    if "RuntimeError" in names and "shutdown" in text:
        raise EmberdError(
            f"An event loop cannot send requests while the interpreter exits ({text}). Send "
            f"them before that, or call the synchronous method."
        ) from error
    if names & _NOT_CONNECTED:
        return TransportError("refused", text)
    if names & _TOO_SLOW:
        return TransportError("timeout", text)
    if names & _BROKEN_OFF or cause is not None:
        return TransportError("broken", text)
    raise error


# ---------------------------------------------------------------- threads


class Session:
    """Connections to one endpoint, for any number of threads, through an ``openai.OpenAI``.

    Args:
        client: The client.
        timeout_s: How long one request may take, in seconds.
    """

    def __init__(self, client: Any, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s

    @classmethod
    def open(cls, endpoint: Endpoint, connections: int, timeout_s: float) -> Session:
        """Return a session with its own client, closed when it is collected."""
        with fork.no_fork():  # a child would inherit the locks of imports
            client, http = _open_sdk(endpoint, connections)
        session = cls(client, timeout_s)
        weakref.finalize(session, _close_own, http, os.getpid())
        return session

    def send(self, request: Request, exchange: Exchange | None = None) -> Reply | TransportError:
        """Send ``request`` once and return what came of it; as ``LoopbackSession.send``.

        In another thread: neither the look-up of a name, nor connecting to one address after
        another, nor a client that was passed in keeps to a deadline.
        """
        exchange = exchange or Exchange(self._timeout_s)
        sending = background.run(functools.partial(self.send_here, request, exchange), "request")
        try:
            with suppress(TimeoutError):
                return sending.result(exchange.left_s())
            return TransportError("timeout", "the answer came too slowly")
        finally:
            exchange.cancel()

    def send_here(self, request: Request, exchange: Exchange) -> Reply | TransportError:
        """Do as ``send`` in this thread, which may be held for longer than the exchange lasts."""
        try:
            call = _sdk_call(self._client, request, exchange.left_s())
            with bounded(exchange), reply_order(), closing(call()) as response:
                return _read_reply(response, request.most_bytes)
        except Exception as error:  # noqa: BLE001 - what is not of the network is raised again
            return _answer_of(error)


def _close_own(http: Any, pid: int) -> None:
    if os.getpid() == pid:  # a forked child leaves the connections, and their locks, to the parent
        http.close()


class Transport(fork.ForkAware):
    """The session of one client: kept while its endpoint stays the same.

    Args:
        connections: How many idle connections are kept.
        timeout_s: How long one request may take, in seconds.
        client: The user's own ``openai.OpenAI``, used as it is.
    """

    def __init__(self, connections: int, timeout_s: float, client: Any = None) -> None:
        self._connections = connections
        self._timeout_s = timeout_s
        self._given = Session(client, timeout_s) if client is not None else None
        self._opening = threading.Lock()  # held for long: only by those who need the session
        self._lock = threading.Lock()
        self._session: Session | LoopbackSession | None = None
        self._endpoint: Endpoint | None = None
        fork.register(self)

    def session(self, endpoint: Endpoint) -> Session | LoopbackSession:
        """Return the session for ``endpoint``; the first through the SDK takes up to a second.

        The one before is not closed here: another thread may be using it, and it is closed when
        that thread is done.
        """
        if (session := self.ready(endpoint)) is not None:
            return session
        with self._opening:
            if (session := self.ready(endpoint)) is None:
                session = Session.open(endpoint, self._connections, self._timeout_s)
                with self._lock:
                    self._session, self._endpoint = session, endpoint
            return session

    def ready(self, endpoint: Endpoint) -> Session | LoopbackSession | None:
        """Return the session for ``endpoint``; None if opening it may take long."""
        if self._given is not None:
            return self._given
        with self._lock:
            if self._session is None or self._endpoint != endpoint:
                if not loopback.suits(endpoint):
                    return None
                self._session = LoopbackSession(endpoint, self._timeout_s)
                self._endpoint = endpoint
            return self._session

    def close(self) -> None:
        """Drop the session; the next use opens another one.

        It is closed when the last thread that has a request in flight is done with it.
        """
        with self._lock:
            self._session = None

    def after_fork_in_child(self) -> None:
        """Leave the connections to the parent."""
        fork.keep_inherited(self._session)
        self._session = None
        self._opening = threading.Lock()
        self._lock = threading.Lock()


# ---------------------------------------------------------------- tasks


class AsyncSession:
    """A session for tasks: each request is sent by a thread, through the session of threads.

    A thread reads a large reply in a fraction of the time that an event loop takes for it, and
    leaves the loop to its other tasks.

    Args:
        session: That session.
        timeout_s: How long one request may take, in seconds.
    """

    def __init__(self, session: Session | LoopbackSession, timeout_s: float) -> None:
        self._session = session
        self._timeout_s = timeout_s

    async def send(
        self, request: Request, timeout_s: float | None = None
    ) -> Reply | TransportError:
        """Send ``request`` once and return what came of it.

        A task that is cancelled ends its request, as a thread does with ``Exchange.cancel``.

        Args:
            request: The request.
            timeout_s: How long it may take, in seconds; None for the time of the session.
        """
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        exchange = Exchange(timeout_s)
        send = functools.partial(self._session.send_here, request, exchange)
        try:
            async with asyncio.timeout(timeout_s + _GRACE_S):
                return await in_thread(send, "request")
        except TimeoutError:
            return TransportError("timeout", "the answer came too slowly")
        finally:
            exchange.cancel()


class _GivenAsyncSession:
    """A session for tasks, through the user's own ``openai.AsyncOpenAI``.

    Args:
        client: The client.
        timeout_s: How long one request may take, in seconds.
    """

    def __init__(self, client: Any, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s

    async def send(
        self, request: Request, timeout_s: float | None = None
    ) -> Reply | TransportError:
        """Do as ``AsyncSession.send``, on the event loop to which the client belongs."""
        try:
            left_s = Exchange(self._timeout_s if timeout_s is None else timeout_s).left_s()
            async with asyncio.timeout(left_s):
                async with aclosing(await _sdk_call(self._client, request, left_s)()) as found:
                    # Not aread(): the response would hold the body, and is only freed by a garbage
                    # collection, which may come late.
                    body = _empty_body(found, request.most_bytes)
                    async for piece in found.aiter_raw():
                        if not body.add(piece):
                            break
                    return _reply(found, b"".join(body))
        except Exception as error:  # noqa: BLE001 - what is not of the network is raised again
            return _answer_of(error)


class AsyncTransport:
    """The session of one client, for the tasks of any event loop; otherwise as ``Transport``."""

    def __init__(self, connections: int, timeout_s: float, client: Any = None) -> None:
        self._timeout_s = timeout_s
        self._given = _GivenAsyncSession(client, timeout_s) if client is not None else None
        self._of_threads = Transport(connections, timeout_s)

    async def session(self, endpoint: Endpoint) -> AsyncSession | _GivenAsyncSession:
        """Return the session for ``endpoint``."""
        if self._given is not None:
            return self._given
        session = self._of_threads.ready(endpoint)
        if session is None:
            opening = functools.partial(self._of_threads.session, endpoint)
            session = await in_thread(opening, "open")
        return AsyncSession(session, self._timeout_s)

    def close(self) -> None:
        """Drop the session, as ``Transport.close`` does."""
        self._of_threads.close()

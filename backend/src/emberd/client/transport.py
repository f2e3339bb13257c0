"""Sending: one request out, one answer or its absence back.

Over the openai SDK, except from threads to a server of this machine, see ``plain``. The SDK is
imported at first use. Its own retries, redirects and parsing are off: what is sent again and what
an answer means is decided elsewhere. It stands on httpx or on httpx2, depending on its version;
whichever it is, only what both offer is used.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncGenerator
from contextlib import aclosing, closing
from typing import Any, Final

from emberd.client import deadline, plain, sdk
from emberd.client.loops import PerLoop
from emberd.client.plain import PlainSession
from emberd.client.protocol import Ask, Reply, Trouble
from emberd.client.sockets import Sockets
from emberd.endpoint import Endpoint
from emberd.system import fork
from emberd.system.fork import ForkAware


class Session:
    """Connections to one endpoint, for any number of threads.

    Args:
        client: An ``openai.OpenAI``.
        timeout_s: How long one request may take, in seconds.
    """

    def __init__(self, client: Any, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._sockets = Sockets()
        self._closing: weakref.finalize[Any, Any] | None = None

    @classmethod
    def open(cls, endpoint: Endpoint, connections: int, timeout_s: float) -> Session:
        """Return a session of our own, closed when nobody refers to it any more."""
        sockets = Sockets(endpoint.listener)
        client, http = sdk.connect(endpoint, connections, sockets)
        session = cls(client, timeout_s)
        session._sockets = sockets
        session._closing = weakref.finalize(session, http.close)
        return session

    def send(self, ask: Ask) -> Reply | Trouble:
        """Send ``ask`` once and return what came of it."""
        try:
            call = sdk.call(self._client, ask, self._timeout_s)
            with deadline.within(self._timeout_s), closing(call()) as response:
                return sdk.reply(response, b"".join(_in_time(response.iter_bytes())))
        except Exception as error:  # noqa: BLE001 - what is not of the network is raised again
            return sdk.answer_of(error)

    def leave_to_parent(self) -> None:
        """Close the child's copies of the connections, and touch nothing else."""
        if self._closing is not None:
            self._closing.detach()
        self._sockets.close_in_child()
        fork.keep_inherited(self)


def _in_time(chunks: Any) -> Any:
    # The streams of a client that was handed in know of no deadline.
    for chunk in chunks:
        yield chunk
        deadline.left_s()


class Transport(ForkAware):
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
        self._lock = threading.Lock()
        self._session: Session | PlainSession | None = None
        self._endpoint: Endpoint | None = None
        fork.register(self)

    def session(self, endpoint: Endpoint) -> Session | PlainSession:
        """Return the session for ``endpoint``.

        The one before is not closed here: another thread may be using it, and it closes itself
        when that is done.
        """
        if self._given is not None:
            return self._given
        with self._lock:
            if self._session is None or self._endpoint != endpoint:
                self._session = self._opened(endpoint)
                self._endpoint = endpoint
            return self._session

    def _opened(self, endpoint: Endpoint) -> Session | PlainSession:
        if plain.suits(endpoint):
            return PlainSession(endpoint, self._timeout_s)
        return Session.open(endpoint, self._connections, self._timeout_s)

    def close(self) -> None:
        """Let go of what is open; the next use opens it again.

        It closes itself when the last thread that has a request in flight is done with it.
        """
        with self._lock:
            self._session = None

    def after_fork_in_child(self) -> None:
        """Leave the connections to the parent."""
        session, self._session = self._session, None
        self._lock = threading.Lock()
        if session is not None:
            session.leave_to_parent()


class AsyncSession:
    """Connections to one endpoint, for the tasks of one event loop.

    Args:
        client: An ``openai.AsyncOpenAI``.
        timeout_s: How long one request may take, in seconds.
    """

    def __init__(self, client: Any, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._sockets = Sockets()
        self._guard: AsyncGenerator[None] | None = None
        self._in_flight = 0
        self._is_closing = False

    @classmethod
    async def open(cls, endpoint: Endpoint, connections: int, timeout_s: float) -> AsyncSession:
        """Return a session of our own, closed with its loop at the latest."""
        guards = _GUARDS.get()
        await guards.sweep()
        sockets = Sockets(endpoint.listener)
        client, http = sdk.aconnect(endpoint, connections, sockets)
        session = cls(client, timeout_s)
        session._sockets = sockets
        session._guard = await guards.watch(session, http)
        return session

    async def send(self, ask: Ask) -> Reply | Trouble:
        """Send ``ask`` once and return what came of it."""
        self._in_flight += 1
        try:
            return await self._send(ask)
        finally:
            self._in_flight -= 1
            if self._is_closing:
                await self.close()

    async def _send(self, ask: Ask) -> Reply | Trouble:
        try:
            async with asyncio.timeout(self._timeout_s):
                call = sdk.call(self._client, ask, self._timeout_s)
                response = await call()
                async with aclosing(response):
                    # Not aread(): the response would hold the body, and is only freed by a
                    # collection, which may be long in coming.
                    body = b"".join([piece async for piece in response.aiter_bytes()])
                    return sdk.reply(response, body)
        except Exception as error:  # noqa: BLE001 - what is not of the network is raised again
            return sdk.answer_of(error)

    async def close(self) -> None:
        """Close the connections, after what is in flight."""
        self._is_closing = True
        if self._guard is not None and self._in_flight == 0:
            await self._guard.aclose()

    def leave_to_parent(self) -> None:
        """Close the child's copies of the connections, and touch nothing else."""
        self._sockets.close_in_child()
        fork.keep_inherited(self)


async def _guard(http: Any) -> AsyncGenerator[None]:
    # A loop ends its asynchronous generators before it closes; nothing else tells in time that
    # a loop is about to close.
    try:
        yield
    finally:
        await http.aclose()


class _Guards:
    """What closes the sessions of one loop.

    A session that is collected cannot close itself: that takes several turns of a loop which may
    be at its last. So its guard is held here, until another session is opened or the loop ends.
    """

    def __init__(self) -> None:
        self._watched: list[tuple[weakref.ref[AsyncSession], AsyncGenerator[None]]] = []

    async def watch(self, session: AsyncSession, http: Any) -> AsyncGenerator[None]:
        """Begin to guard ``http``, which ``session`` uses."""
        guard = _guard(http)
        await anext(guard)
        self._watched.append((weakref.ref(session), guard))
        return guard

    async def sweep(self) -> None:
        """Close what nobody refers to any more."""
        unused = [guard for session, guard in self._watched if session() is None]
        self._watched = [entry for entry in self._watched if entry[1] not in unused]
        for guard in unused:
            await guard.aclose()


_GUARDS: Final[PerLoop[_Guards]] = PerLoop(_Guards)


class _Held:
    """The session that a loop has at present."""

    session: AsyncSession | None = None
    endpoint: Endpoint | None = None

    def leave_to_parent(self) -> None:
        if self.session is not None:
            self.session.leave_to_parent()


class AsyncTransport:
    """The sessions of one client, one a running loop; as ``Transport`` otherwise.

    Args:
        connections: How many idle connections are kept.
        timeout_s: How long one request may take, in seconds.
        client: The user's own ``openai.AsyncOpenAI``, used as it is.
    """

    def __init__(self, connections: int, timeout_s: float, client: Any = None) -> None:
        self._connections = connections
        self._timeout_s = timeout_s
        self._given = AsyncSession(client, timeout_s) if client is not None else None
        self._held: PerLoop[_Held] = PerLoop(_Held, _Held.leave_to_parent)

    async def session(self, endpoint: Endpoint) -> AsyncSession:
        """Return the running loop's session for ``endpoint``."""
        if self._given is not None:
            return self._given
        held = self._held.get()
        if held.session is None or held.endpoint != endpoint:
            held.session = await AsyncSession.open(endpoint, self._connections, self._timeout_s)
            held.endpoint = endpoint
        return held.session

    async def close(self) -> None:
        """Close what the running loop has open; the next use opens it again."""
        held = self._held.pop()
        if held is not None and held.session is not None:
            await held.session.close()

"""The process of an ASGI application: uvicorn with bounded connections, signals that drain.

Both servers run in it: emberd's own, and the gateway.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Final, Protocol

import uvicorn
from starlette.types import ASGIApp

from emberd.serving.connections import BoundedProtocol, Connections

# Longer than clients keep an idle connection: a server that closes first may do so while a
# request is on its way.
_KEEP_ALIVE_S: Final = 75
# Counts from when all replies are computed; only their last bytes remain to be sent.
_FLUSH_S: Final = 10


class Drainable(Protocol):
    """What is served, as the process sees it.

    Attributes:
        on_done: Called when the process may end.
    """

    on_done: Callable[[], None]

    @property
    def can_drain(self) -> bool:
        """Whether it may have requests in flight; otherwise a signal ends the process."""

    def drain(self) -> None:
        """Finish what is in flight, then call ``on_done``."""


class DrainingServer(uvicorn.Server):
    """uvicorn, but a signal first drains the service while the port stays open for probes.

    Args:
        app: The application.
        service: What it serves.
        connections: Its connections.
    """

    def __init__(self, app: ASGIApp, service: Drainable, connections: Connections) -> None:
        super().__init__(
            uvicorn.Config(
                app=app,
                http=type("Protocol", (BoundedProtocol,), {"connections_of_server": connections}),
                ws="none",
                backlog=connections.backlog,
                log_config=None,
                access_log=False,
                lifespan="on",
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_FLUSH_S,
            )
        )
        self._service = service
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = asyncio.Event()
        service.on_done = self.stop

    async def main_loop(self) -> None:
        """Wait until ``stop`` is called.

        uvicorn's own loop wakes up ten times a second, to see that and to write the Date header,
        which no client of this server needs.
        """
        if threading.current_thread() is threading.main_thread():
            # uvicorn's handlers run when the loop wakes up next; these wake it up.
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(
                    number, self.handle_exit, number, None
                )
        await self._stopped.wait()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until the service is done."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal; end at once at the second, or if nothing can be drained."""
        if self._loop is None or not self._service.can_drain:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
            return
        self._loop.call_soon_threadsafe(self._service.drain)

    def stop_listening(self) -> None:
        """Accept no more connections; the open ones stay.

        A connection that was accepted in this turn of the event loop is set up in the next one, and
        is closed if its listener is closed by then: listeners are closed in the one after that.
        """
        loop = asyncio.get_running_loop()
        for server in self.servers:
            for listener in server.sockets:
                loop.remove_reader(listener.fileno())
            loop.call_soon(loop.call_soon, server.close)

    def stop(self) -> None:
        """Close the port and return from ``serve``."""
        self.should_exit = True
        self._stopped.set()

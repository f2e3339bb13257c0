"""The server of one embedder or reranker: found or started at first use, and again after a loss."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import math
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import Future
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeVar

from emberd import catalog, env
from emberd.endpoint import Endpoint
from emberd.errors import (
    EmberdError,
    MissingKeyError,
    ServerMismatchError,
    ServerUnavailableError,
    SettingError,
)
from emberd.settings import ServerSpec, Settings
from emberd.system import background, fork, listeners
from emberd.system.fork import ForkAware
from emberd.system.gateway_start import await_gateway, await_gateway_on_loop

if TYPE_CHECKING:
    from emberd.manager import Server
    from emberd.verified_manager import Manager


T = TypeVar("T")

_LOG: Final = logging.getLogger("emberd")

_READY_POLL_S: Final = 0.25
_NOTE_EVERY_S: Final = 0.5


class ServerHandle(ForkAware):
    """The server of one object in this process: found once, and again when it is lost."""

    def __init__(self, settings: Settings, manager: Manager | None) -> None:
        self._settings = settings
        self.manager = manager  # None before the first use
        self._server: Server | None = None
        self._before: Server | None = None
        self._dimensions: int | None = None  # of all servers of this object
        self._warned: set[int | None] = set()
        self.key_is_missing = False
        self.after_fork_in_child()
        fork.register(self)

    def after_fork_in_child(self) -> None:
        """Replace the locks: a thread that does not exist in the child may hold the old ones."""
        self._lock = threading.Lock()
        self._running_lock = threading.Lock()  # never held during a call
        self._running: dict[Hashable, Future[Any]] = {}
        self._note: tuple[Endpoint, Future[None]] | None = None
        self._noted_s = -math.inf

    def server(self, inspect: Callable[[], Endpoint] | None = None) -> Server:
        """Return the server; find or start it if there is none yet.

        Args:
            inspect: Inspects the server of a given client; None if the manager provides one.

        Raises:
            ServerError: No server is available.
        """
        if (server := self._current()) is not None:
            return server
        with self._lock:
            if self._server is None:
                self._check()
                # The external server that was used last: its successor is compared with it.
                before = self._before
                external = before if before is not None and before.origin != "own" else None
                if inspect is None:
                    self._server = self._again(external)
                else:
                    found = await_gateway(inspect, self._settings.start_timeout)
                    self._server = _given_server(found)
            return self._server

    async def aserver(self, inspect: Callable[[], Awaitable[Endpoint]] | None = None) -> Server:
        """Like ``server``, on the running event loop, which must not wait for files."""
        server = self._server
        if server is not None and server.origin != "own":
            return server  # nothing else is checked before a job
        if inspect is None:
            return await self.run(None, self.server)
        self._check()
        found = await await_gateway_on_loop(inspect, self._settings.start_timeout)
        self._server = _given_server(found)
        return self._server

    async def aload(self, also: Callable[[], object]) -> None:
        """Do in another thread what the first job needs and what takes half a second or more.

        Imports the client, hashes the files of a model's folder, and calls ``also``.
        """

        def load() -> None:
            with fork.no_fork():  # a child would inherit the locks of imports and of ``spec``
                import_module("emberd.client.clients")
                _ = self.spec
                also()

        await self.run("load", load)

    @property
    def endpoint(self) -> Endpoint | None:
        """The server that was used last; None before the first use. Nothing is asked or started."""
        server = self._server or self._before
        return server.endpoint if server is not None else None

    def reconnect(self, endpoint: Endpoint) -> Endpoint:
        """Return a server in place of ``endpoint``, which was lost during a job.

        Raises:
            ServerMismatchError: Another user's server, or one with other weights, has taken its
                place; later calls raise it too.
        """
        with self._lock:
            if self._server is not None and self._server.endpoint != endpoint:
                return self._server.endpoint  # another thread has reconnected
            # Cleared first: this raises if a user stopped the server, and then a later job must
            # start a new one instead of reconnecting.
            self._before, self._server = self._server or self._before, None
            self._server = self._again(self._before)
            return self._server.endpoint

    async def areconnect(self, endpoint: Endpoint) -> Endpoint:
        """Like ``reconnect``, on the running event loop."""
        return await self.run(endpoint, lambda: self.reconnect(endpoint))

    def used(self, _endpoint: Endpoint) -> None:
        """Record that the server is in use, so that it does not stop as idle."""
        server = self._server  # read once: reconnecting may clear it at any time
        if server is not None and server.origin != "given":
            self._manager().used(server)

    def report_unresponsive(self, _endpoint: Endpoint) -> None:
        """Have the supervisor probe the server, which did not answer in time."""
        server = self._server
        if server is not None and server.origin != "given":
            self._manager().report_unresponsive(server)

    def aused(self, endpoint: Endpoint) -> None:
        """Like ``used``, on an event loop, which must not wait for files.

        A thread does it, and an error of it is raised by a later call for the same server.
        """
        now = time.monotonic()
        if now - self._noted_s < _NOTE_EVERY_S:
            return
        before, self._noted_s = self._note, now
        with suppress(EmberdError):  # no thread can be started; the reply is there
            self._note = endpoint, background.run(functools.partial(self.used, endpoint), "used")
        if before is not None and before[0] == endpoint and before[1].done():
            before[1].result()

    def areport_unresponsive(self, endpoint: Endpoint) -> None:
        """Like ``report_unresponsive``, on an event loop, which must not wait for files."""
        with suppress(EmberdError):
            background.run(functools.partial(self.report_unresponsive, endpoint), "report")

    def warn_of_cut(self, settings: Settings) -> None:
        """Warn, once for each length, if the model was not trained to have its vectors cut."""
        model, dimensions = settings.known, settings.dimensions
        is_cut = dimensions not in (None, model.dimensions, model.cut_to)
        if is_cut and not model.matryoshka and dimensions not in self._warned:
            self._warned.add(dimensions)
            warnings.warn(
                f"dimensions={dimensions}: as far as emberd knows, {model.name} was not trained so "
                f"that its vectors can be cut, so quality may suffer. Measure it, or leave "
                f"dimensions out.",
                UserWarning,
                stacklevel=2,
            )

    @functools.cached_property
    def spec(self) -> ServerSpec:
        """The wanted server; for a model in a folder, with the hash of its present files.

        Read once, so that vectors and index identity refer to the same files.
        """
        return self._settings.spec

    async def run(self, key: Hashable, call: Callable[[], T]) -> T:
        """Return what ``call`` returns, run in a daemon thread that callers of one key share.

        Cancelling ends the wait, but not the call. Not in the event loop's executor: its threads
        are the application's, and exiting the process or ``asyncio.run`` would wait for them.
        """
        result: T = await asyncio.wrap_future(self._start(key, call))
        return result

    def wait(self, key: Hashable, call: Callable[[], T]) -> T:
        """Like ``run``, outside event loops."""
        result: T = self._start(key, call).result()
        return result

    def _start(self, key: Hashable, call: Callable[[], T]) -> Future[T]:
        def work() -> T:
            try:
                return call()
            finally:
                # Before the result is set, so that later callers start a new run.
                with self._running_lock:
                    self._running.pop(key, None)

        with self._running_lock:
            future = self._running.get(key)
            if future is None:
                future = self._running[key] = background.run(work, "attach")
        return future

    def _current(self) -> Server | None:
        """Return the server unless it has stopped since the last job."""
        server = self._server
        if server is None or server.origin != "own":
            return server
        # A server that stopped between two jobs, idle or by the user, was not lost during a job:
        # this job gets a new one as the first job did.
        if self._manager().is_current(server):
            return server
        # Without the lock, which a start may hold for minutes. At worst, a server that another
        # thread just found is looked up once more.
        if self._server is server:
            self._server = None
        return None

    def _again(self, lost: Server | None) -> Server:
        """Like ``_ensure``, but wait for a given server that is restarting."""
        deadline = time.monotonic() + self._settings.timeout
        while True:
            try:
                server = self._ensure(lost)
            except ServerUnavailableError:
                given = lost is not None and lost.origin == "given"
                if not given or time.monotonic() > deadline:
                    raise
                try:
                    is_listening = listeners.find(self._settings.base_url or "") is not None
                except OSError:
                    is_listening = True  # it may be, and the next try sees
                if not is_listening:
                    raise
            else:
                self._before = None
                return server
            time.sleep(_READY_POLL_S)

    def _ensure(self, lost: Server | None) -> Server:
        if self.spec != self._settings.spec:
            raise SettingError(
                f"The files in {self.spec.model} have changed since this object was made, so it "
                f"contains another model now. {catalog.RECREATE[self._settings.task]}"
            )
        self._settings.fetch_card()  # Engines check the card's pooling before a start.
        self._settings.check_task()
        with env.errors_for(self.spec.task):
            server = self._manager().ensure(
                self.spec,
                base_url=self._settings.base_url,
                api_key=self._settings.api_key,
                batch_size=self._settings.batch_size,
                start_timeout=self._settings.start_timeout,
                idle_timeout=self._settings.idle_timeout,
                lost=lost,
                on_progress=lambda progress: _LOG.info(
                    "%s (%.0f s, log: %s)", progress.text, progress.seconds, progress.log_path
                ),
            )
        endpoint = server.endpoint
        if self._dimensions not in (None, endpoint.dimensions):
            raise ServerMismatchError(
                f"{endpoint.url} gives vectors of {endpoint.dimensions} dimensions, but this "
                f"object has used a server with {self._dimensions} so far: another model answers "
                f"there. Make a new object, and embed all texts again with it."
            )
        if lost is not None and lost.origin != "own" and server.origin != "own":
            _check_weights(lost.endpoint, endpoint)
        self._dimensions = endpoint.dimensions
        _LOG.info("%s", server.reason)
        for note in server.notes:
            _warn_once(note)
        return server

    def _manager(self) -> Manager:
        if self.manager is None:
            # Imported at first use: it imports the libraries for locks and processes.
            with fork.no_fork():
                from emberd.verified_manager import Manager

            self.manager = Manager()
        return self.manager

    def _check(self) -> None:
        if self.key_is_missing:
            raise MissingKeyError(
                f"This object was unpickled and needs the key of {self._settings.base_url}, which "
                f"pickles do not contain. Set "
                f"{env.setting_variable('api_key', self._settings.task)} where it is unpickled."
            )
        self.warn_of_cut(self._settings)


def _check_weights(before: Endpoint, now: Endpoint) -> None:
    # An external server must return the same vectors after a restart.
    if before.url != now.url or not before.canary or not now.canary:
        return
    if now.labels:
        for one, two in zip(*before.canary, *now.canary, strict=True):
            if not abs(catalog.logit(one) - catalog.logit(two)) <= catalog.SAME_LOGIT:
                raise ServerMismatchError(
                    f"{now.url} was restarted and returns other scores than before ({two:.6f} "
                    f"instead of {one:.6f} for the same pair), so it has other weights. "
                    f"{catalog.RECREATE[now.task]}"
                )
        return
    pairs = zip(before.canary, now.canary, strict=False)  # one of them may have been rate-limited
    for similarity in itertools.starmap(catalog.cosine, pairs):
        if not similarity >= catalog.SAME_TEXT:  # so that NaN fails too
            raise ServerMismatchError(
                f"{now.url} was restarted and returns other vectors than before (cosine "
                f"{similarity:.3f} for the same text), so it has other weights. "
                f"{catalog.RECREATE[now.task]}"
            )


@functools.cache
def _warn_once(note: str) -> None:
    warnings.warn(note, UserWarning, stacklevel=2)


def _given_server(endpoint: Endpoint) -> Server:
    from emberd.manager import Server  # imported late, like the manager

    reason = f"{endpoint.url} is the server of the given client"
    return Server(endpoint, "given", reason, notes=endpoint.notes)

"""The server of one embedder: found at first use, watched, and replaced after a loss."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import math
import operator
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import Future
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeVar

from emberd import env
from emberd.endpoint import Endpoint
from emberd.errors import MissingKeyError, ServerMismatchError, ServerUnavailableError, SettingError
from emberd.settings import ServerSpec, Settings
from emberd.system import fork, listeners
from emberd.system.fork import ForkAware

if TYPE_CHECKING:
    from emberd.manager import Progress, Server
    from emberd.verified_manager import Manager


T = TypeVar("T")

_LOG: Final = logging.getLogger("emberd")

_READY_POLL_S: Final = 0.25
_SAME_VECTOR: Final = 0.995
"""Least cosine of one text's vectors before and after a restart: bfloat16 is not exact."""


class _Errands:
    """Long waits in threads of their own; who asks for one that is under way waits for it too.

    Not in the loop's executor: its threads are the application's, and the end of the process, or
    of ``asyncio.run``, waits for them. These are daemons.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # never held while something is waited for
        self._under_way: dict[Hashable, Future[Any]] = {}

    async def wait_for(self, name: Hashable, work: Callable[[], T]) -> T:
        """Return what ``work`` returns. Cancelling ends the wait, and not the work."""
        with self._lock:
            future = self._under_way.get(name)
            if future is None:
                future = Future()
                future.set_running_or_notify_cancel()  # from now on nobody can cancel it
                run = functools.partial(self._run, name, work, future)
                context = contextvars.copy_context()
                threading.Thread(
                    target=context.run, args=(run,), daemon=True, name="emberd-attach"
                ).start()
                self._under_way[name] = future
        result: T = await asyncio.wrap_future(future)
        return result

    def _run(self, name: Hashable, work: Callable[[], T], future: Future[T]) -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - raised again by who waits
            self._forget(name)
            future.set_exception(error)
        else:
            self._forget(name)
            future.set_result(result)

    def _forget(self, name: Hashable) -> None:
        # Before anybody is told: who asks after that is to get an answer of its own.
        with self._lock:
            self._under_way.pop(name, None)


class Attachment(ForkAware):
    """The server of one embedder in this process: asked for once, and again when it is lost."""

    def __init__(self, settings: Settings, manager: Manager | None) -> None:
        self._settings = settings
        self._manager_in_use = manager
        self._server: Server | None = None
        self._before: Server | None = None
        self._lock = threading.Lock()
        self._errands = _Errands()
        self._warned: set[int | None] = set()
        self.key_is_missing = False
        fork.register(self)

    def after_fork_in_child(self) -> None:
        """Take a new lock: a thread that does not exist in the child may hold the old one."""
        self._lock = threading.Lock()
        self._errands = _Errands()

    def server(self, inspect: Callable[[], Endpoint] | None = None) -> Server:
        """Return the server, asked for now if this is the first use.

        Args:
            inspect: Asks the server of a client that was handed in what it is; None where the
                manager finds or starts one.
        """
        if (server := self._current()) is not None:
            return server
        with self._lock:
            if self._server is None:
                self._check()
                self._server = _by_hand(inspect()) if inspect else self._again(self._external)
            return self._server

    async def aserver(self, inspect: Callable[[], Awaitable[Endpoint]] | None = None) -> Server:
        """Do as ``server``, from the running event loop."""
        if (server := self._current()) is not None:
            return server
        if inspect is None:
            return await self._errands.wait_for(None, self.server)
        self._check()
        self._server = _by_hand(await inspect())
        return self._server

    async def aload(self) -> None:
        """Import what the client needs, in half a second of another thread than the loop's."""
        await self._errands.wait_for(_load, _load)

    def heal(self, endpoint: Endpoint) -> Endpoint:
        """Return a server in place of ``endpoint``, which went away in the middle of a job.

        Raises:
            ServerMismatchError: Another user's server, or one with other weights, is there now; so
                do all later calls.
        """
        with self._lock:
            if self._server is not None and self._server.endpoint != endpoint:
                return self._server.endpoint  # another thread has been here before
            # Forgotten first: when a person stopped it this raises, and a later job is to start
            # it again instead of healing.
            self._before, self._server = self._server or self._before, None
            self._server = self._again(self._before)
            return self._server.endpoint

    async def aheal(self, endpoint: Endpoint) -> Endpoint:
        """Do as ``heal``, from the running event loop."""
        return await self._errands.wait_for(endpoint, lambda: self.heal(endpoint))

    def used(self, _endpoint: Endpoint) -> None:
        """Keep the server from being taken for idle."""
        server = self._server  # read once: a heal may forget it at any moment
        if server is not None and server.origin != "given":
            self._manager().used(server)

    def suspect(self, _endpoint: Endpoint) -> None:
        """Have the server probed: it did not answer in time."""
        server = self._server
        if server is not None and server.origin != "given":
            self._manager().suspect(server)

    def warn_of_cut(self, settings: Settings) -> None:
        """Warn, once a length, of vectors cut that no training has made fit for it."""
        model, dimensions = settings.known, settings.dimensions
        is_cut = dimensions not in (None, model.dimensions, model.cut_to)
        if is_cut and not model.matryoshka and dimensions not in self._warned:
            self._warned.add(dimensions)
            warnings.warn(
                f"dimensions={dimensions}: as far as emberd knows, {model.name} was not trained so "
                f"that its vectors can be cut; they lose more than they should. Measure, or leave "
                f"dimensions out.",
                UserWarning,
                stacklevel=2,
            )

    @property
    def manager(self) -> Manager | None:
        """What finds and starts servers; None while nothing has."""
        return self._manager_in_use

    @functools.cached_property
    def spec(self) -> ServerSpec:
        """The server that is wanted; of a model in a folder, with the files that it has now.

        Looked at once, so that the vectors and what they are said to be made with belong together.
        """
        return self._settings.spec

    def _current(self) -> Server | None:
        """Return the server unless it has stopped since the last job."""
        server = self._server
        if server is None or server.origin != "own":
            return server
        # A server that stopped between two jobs, for idleness or by a person, was not lost in
        # the middle of one: this job asks for a new one as the first job did.
        if self._manager().is_current(server):
            return server
        # Without the lock, which a start may hold for minutes: this runs on event loops too. At
        # worst the server of a heal that ends right now is asked for once more.
        if self._server is server:
            self._server = None
        return None

    @property
    def _external(self) -> Server | None:
        """The server of others that was used last; what follows it is compared with it."""
        before = self._before
        return before if before is not None and before.origin != "own" else None

    def _again(self, lost: Server | None) -> Server:
        """Do as ``_ensure``, and give a given server that restarts time to be ready."""
        deadline = time.monotonic() + self._settings.timeout
        while True:
            try:
                server = self._ensure(lost)
            except ServerUnavailableError:
                given = lost is not None and lost.origin == "given"
                if not given or time.monotonic() > deadline or not self._is_listening():
                    raise
            else:
                self._before = None
                return server
            time.sleep(_READY_POLL_S)

    def _is_listening(self) -> bool:
        return listeners.find(self._settings.base_url or "") is not None

    def _ensure(self, lost: Server | None) -> Server:
        if self.spec != self._settings.spec:
            raise SettingError(
                f"The files in {self.spec.model} have changed since this object was made: it holds "
                f"another model now. Make a new object, and embed all texts again with it."
            )
        server = self._manager().ensure(
            self.spec,
            base_url=self._settings.base_url,
            api_key=self._settings.api_key,
            start_timeout=self._settings.start_timeout,
            idle_timeout=self._settings.idle_timeout,
            lost=lost,
            on_progress=_log_progress,
        )
        if lost is not None and lost.origin != "own" and server.origin != "own":
            _check_same(lost.endpoint, server.endpoint)
        _LOG.info("%s", server.reason)
        for note in server.notes:
            _warn_once(note)
        return server

    def _manager(self) -> Manager:
        if self._manager_in_use is None:
            # Imported at first use: it takes the libraries for locks and processes with it.
            with fork.no_fork():
                from emberd.verified_manager import Manager

            self._manager_in_use = Manager()
        return self._manager_in_use

    def _check(self) -> None:
        if self.key_is_missing:
            raise MissingKeyError(
                f"This Embedder was unpickled and needs the key of {self._settings.base_url}, "
                f"which no pickle carries. Set {env.API_KEY} where it is unpickled."
            )
        self.warn_of_cut(self._settings)


def _load() -> None:
    with fork.no_fork():
        import_module("emberd.client.aio")
        import_module("emberd.client.sdk").load()


def _check_same(before: Endpoint, now: Endpoint) -> None:
    """Check that an external server that came back gives the vectors that it gave before.

    Raises:
        ServerMismatchError: It does not.
    """
    if before.url == now.url and before.canary and len(before.canary) == len(now.canary):
        norms = math.hypot(*before.canary) * math.hypot(*now.canary)
        likeness = sum(map(operator.mul, before.canary, now.canary)) / norms
        if not likeness >= _SAME_VECTOR:  # so that NaN fails too
            raise ServerMismatchError(
                f"{now.url} was restarted and gives other vectors than before (cosine "
                f"{likeness:.3f} for the same text): it holds other weights. Make a new object, "
                f"and embed all texts again with it."
            )


@functools.cache
def _warn_once(note: str) -> None:
    warnings.warn(note, UserWarning, stacklevel=2)


def _by_hand(endpoint: Endpoint) -> Server:
    from emberd.manager import Server  # imported late, as the manager is

    return Server(endpoint, "given", f"{endpoint.url} is the server of the client handed in")


def _log_progress(progress: Progress) -> None:
    _LOG.info("%s (%.0f s, log: %s)", progress.text, progress.seconds, progress.log_path)

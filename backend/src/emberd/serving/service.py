"""What the routes share: the encoder, the phase that the server is in, requests in flight."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import Final

from emberd.serving import inputs, wire
from emberd.serving.encoder import Encoder
from emberd.serving.logs import describe
from emberd.serving.metrics import Metrics
from emberd.serving.scheduler import Scheduler

_PROBE_TEXT: Final = "ready"

_log = logging.getLogger("emberd.serving")


class Phase(Enum):
    """Where a server is in its life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Identity:
    """What the server says of itself.

    Attributes:
        model: The name that the model goes by.
        weight_version: Any text; whoever started the server recognises it by this.
        cut_any: Serve ``dimensions`` also for a model that was not trained to be cut.
        revision: The revision that was asked for; None for whatever is there.
    """

    model: str
    weight_version: str = "default"
    cut_any: bool = True
    revision: str | None = None


class Service:
    """One model being served. Lives on one event loop."""

    def __init__(self, encoder: Encoder, identity: Identity) -> None:
        self.encoder = encoder
        self.identity = identity
        self.metrics = Metrics(identity.model)
        self.phase = Phase.LOADING
        self._scheduler = Scheduler(encoder, self.metrics)
        self._in_flight = 0
        self._leave: Callable[[], None] = lambda: None
        self.metrics.running.set_function(lambda: self._scheduler.running)
        self.metrics.queued.set_function(lambda: self._in_flight - self._scheduler.running)

    def when_done(self, leave: Callable[[], None]) -> None:
        """Have ``leave`` called when nothing is left to do: drained, or could not load."""
        self._leave = leave

    @contextlib.asynccontextmanager
    async def life(self) -> AsyncIterator[None]:
        """Load the model beside the body of the ``with``, and encode until it ends."""
        tasks = [asyncio.create_task(self._load()), asyncio.create_task(self._scheduler.run())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def drain(self) -> None:
        """Take no more requests, and leave when those that were taken are answered."""
        self.phase = Phase.DRAINING
        _log.info("draining: %d requests in flight", self._in_flight)
        if self._in_flight == 0:
            self._leave()

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Count one request as in flight.

        Raises:
            RefusedError: The server takes none now.
        """
        self.require_ready()
        arrived = time.monotonic()
        self._in_flight += 1
        try:
            yield
            self.metrics.requests.inc()
            self.metrics.latency.observe(time.monotonic() - arrived)
        finally:
            self._in_flight -= 1
            if self.phase is Phase.DRAINING and self._in_flight == 0:
                self._leave()

    def require_ready(self) -> None:
        """Refuse while the server takes no requests.

        Raises:
            RefusedError: It is loading, or draining; 503, which clients try again.
        """
        if self.phase is not Phase.READY:
            status = HTTPStatus.SERVICE_UNAVAILABLE
            raise wire.RefusedError(
                f"The server is {self.phase.value}. Try again.", status=status, kind=f"{status:d}"
            )

    async def embed(self, request: wire.EmbeddingRequest) -> bytes:
        """Return the body that answers ``request``. Cancelling it gives up its place.

        Raises:
            RefusedError: Another model is asked for, a text is too long, or the model cannot do
                what is asked.
            BadReplyError: The encoder failed.
        """
        encoder, identity = self.encoder, self.identity
        wire.check_model(request.model, identity.model)
        wire.check_dimensions(request.dimensions, encoder, identity.model, cut_any=identity.cut_any)
        items = await asyncio.to_thread(inputs.prepare, request, encoder, identity.model)
        vectors = await self._scheduler.embed(items)
        tokens = sum(item.tokens for item in items)
        return await asyncio.to_thread(
            wire.render_embeddings, identity.model, vectors, tokens, request
        )

    async def probe(self) -> None:
        """Run one text through the encoder, counted nowhere.

        Raises:
            BadReplyError: The encoder failed.
        """
        items = self.encoder.prepare([_PROBE_TEXT])
        await self._scheduler.embed(items, counted=False)

    async def _load(self) -> None:
        _log.info("loading %s", self.encoder.name)
        began = time.monotonic()
        try:
            await self._scheduler.load()
            await self.probe()
        except Exception as error:  # noqa: BLE001 - the process must end with a reason
            self._fail(describe(error))
        else:
            self.phase = Phase.READY
            _log.info("ready: %s after %.1f s", self.identity.model, time.monotonic() - began)

    def _fail(self, reason: str) -> None:
        self.phase = Phase.FAILED
        _log.error("cannot serve %s: %s", self.identity.model, reason)
        self._leave()

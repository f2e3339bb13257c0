"""Who is encoded next: one thread encodes, and requests take turns on it.

A request is cut into parts. Each turn takes the request at the head of the line, fills one
batch from it, and lets the next ones fill what room is left. Those with texts left go to the end
of the line after the batch, behind whoever came meanwhile. So many small requests travel
together, and a small one waits for one batch behind a request of thousands of texts.

All of this happens on the event loop; only ``Encoder.encode`` runs in the thread, and no lock is
needed.

What the routes share: the encoder, the phase that the server is in, requests in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from http import HTTPStatus
from typing import Final

import numpy as np
from numpy.typing import NDArray

from emberd.errors import BadReplyError
from emberd.serving import wire
from emberd.serving.encoder import Encoder, Prepared
from emberd.serving.telemetry import Metrics, describe

_NORM_TOLERANCE: Final = 0.01

_log = logging.getLogger("emberd.serving")


@dataclass(eq=False, slots=True)
class _Job:
    """One request's texts, and how far they are."""

    items: Sequence[Prepared]
    vectors: NDArray[np.float32]
    answer: asyncio.Future[NDArray[np.float32]]
    counted: bool
    taken: int = 0
    encoded: int = 0

    @property
    def has_more(self) -> bool:
        return self.taken < len(self.items) and not self.answer.done()


@dataclass(frozen=True, slots=True)
class _Part:
    """The texts of one job, ``items[start:stop]``, that are in a batch."""

    job: _Job
    start: int
    stop: int

    @property
    def items(self) -> Sequence[Prepared]:
        return self.job.items[self.start : self.stop]


@dataclass(slots=True)
class _Room:
    """How much more fits into a batch; the first text always does."""

    texts: int
    tokens: int
    empty: bool = field(default=True)

    def take(self, item: Prepared) -> bool:
        if not self.empty and (self.texts < 1 or self.tokens < item.tokens):
            return False
        self.empty = False
        self.texts -= 1
        self.tokens -= item.tokens
        return True


class Scheduler:
    """The line in front of an encoder. Everything but the encoding is on one event loop."""

    def __init__(self, encoder: Encoder, metrics: Metrics) -> None:
        self._encoder = encoder
        self._metrics = metrics
        self._line: deque[_Job] = deque()
        self._work = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode")
        self.running = 0

    async def load(self) -> None:
        """Load the encoder in the thread that will use it.

        Raises:
            StartError: It cannot be loaded.
        """
        await asyncio.get_running_loop().run_in_executor(self._thread, self._encoder.load)

    async def embed(
        self, items: Sequence[Prepared], *, counted: bool = True
    ) -> NDArray[np.float32]:
        """Return the vectors of ``items``: float32, shape (len(items), dimensions), norm one.

        Cancelling it abandons what is not encoded yet.

        Args:
            items: What ``Encoder.prepare`` gave.
            counted: Whether it is use of the server; a probe of health is not.

        Raises:
            BadReplyError: The encoder gave something that is no vector.
        """
        vectors = np.empty((len(items), self._encoder.dimensions), dtype=np.float32)
        answer: asyncio.Future[NDArray[np.float32]]
        answer = asyncio.get_running_loop().create_future()
        self._line.append(_Job(items, vectors, answer, counted))
        self._work.set()
        return await answer

    async def run(self) -> None:
        """Encode what is in the line, for ever."""
        while True:
            await self._work.wait()
            batch = self._next_batch()
            if not batch:
                self._work.clear()
                continue
            await self._encode(batch)
            self._line.extend(part.job for part in batch if part.job.has_more)

    def _next_batch(self) -> list[_Part]:
        room = _Room(self._encoder.batch_texts, self._encoder.batch_tokens)
        batch: list[_Part] = []
        while self._line:
            part = _take(self._line[0], room)
            if part is not None:
                batch.append(part)
            elif self._line[0].has_more:  # no room for it: its turn is still to come
                break
            self._line.popleft()
        return batch

    async def _encode(self, batch: Sequence[_Part]) -> None:
        items = [item for part in batch for item in part.items]
        loop = asyncio.get_running_loop()
        self.running = sum(part.job.counted for part in batch)
        try:
            vectors = await loop.run_in_executor(self._thread, self._encoder.encode, items)
            self._deliver(batch, _checked(vectors, len(items), self._encoder.dimensions))
        except Exception as error:  # noqa: BLE001 - whatever it is must reach those who wait
            _log.error("the encoder failed on %d texts: %s", len(items), describe(error))
            for part in batch:
                _fail(part.job, error)
        finally:
            self.running = 0

    def _deliver(self, batch: Sequence[_Part], vectors: NDArray[np.float32]) -> None:
        at = 0
        for part in batch:
            rows = vectors[at : at + part.stop - part.start]
            at += len(rows)
            job = part.job
            if job.counted:
                self._metrics.tokens.inc(sum(item.tokens for item in part.items))
            job.vectors[part.start : part.stop] = rows
            job.encoded += len(rows)
            if not _are_unit(rows):
                _fail(job, BadReplyError("the encoder gave a vector that is not finite and unit"))
            elif job.encoded == len(job.items) and not job.answer.done():
                job.answer.set_result(job.vectors)


def _take(job: _Job, room: _Room) -> _Part | None:
    start = job.taken
    while job.has_more and room.take(job.items[job.taken]):
        job.taken += 1
    return _Part(job, start, job.taken) if job.taken > start else None


def _fail(job: _Job, error: Exception) -> None:
    if not job.answer.done():
        job.answer.set_exception(error)


def _checked(vectors: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    if vectors.shape != (rows, columns):
        raise BadReplyError(f"the encoder gave {vectors.shape} for {rows} texts of {columns}")
    return vectors


def _are_unit(rows: NDArray[np.float32]) -> bool:
    # A comparison with NaN is false, so this covers what is not finite too.
    norms = np.linalg.norm(rows, axis=1)
    return bool(np.all(np.abs(norms - 1) < _NORM_TOLERANCE))


_PROBE_TEXT: Final = "ready"


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
        items = await asyncio.to_thread(wire.prepare, request, encoder, identity.model)
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

"""The served model: its phase, the requests in flight, and the scheduling of batches.

One thread encodes, and requests take turns on it. Each batch is filled from the request at the
head of the queue, then from the next ones. A request with texts left goes to the end of the queue
after the batch, behind requests that arrived during it. So many small requests share a batch, and
a small request waits for one batch behind a request of thousands of texts.

All of this runs on the event loop; only ``Encoder.encode`` runs in the thread, and no lock is
needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import Final

import numpy as np
from numpy.typing import NDArray

from emberd.catalog import is_unit
from emberd.errors import BadReplyError
from emberd.serving import bodies
from emberd.serving.encoder import Encoder, PreparedText, Scorer
from emberd.serving.telemetry import Metrics, describe_error

_PROBE_TEXT: Final = "ready"
_HEALTH_EVERY_S: Final = 1.0

_log = logging.getLogger("emberd.serving")


# ---------------------------------------------------------------- scheduling


@dataclass(eq=False, slots=True)
class _QueuedRequest:
    """The texts of one request, how many are in batches so far, and how many are encoded."""

    items: Sequence[PreparedText]
    vectors: NDArray[np.float32]
    answer: asyncio.Future[NDArray[np.float32]]
    counted: bool
    taken: int = 0
    encoded: int = 0

    @property
    def has_more(self) -> bool:
        return self.taken < len(self.items) and not self.answer.done()

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


@dataclass(frozen=True, slots=True)
class _BatchPart:
    """The texts ``items[start:stop]`` of one request, in a batch."""

    request: _QueuedRequest
    start: int
    stop: int

    @property
    def items(self) -> Sequence[PreparedText]:
        return self.request.items[self.start : self.stop]


class Scheduler:
    """The queue in front of an encoder. Everything but the encoding is on one event loop."""

    def __init__(self, encoder: Encoder, metrics: Metrics, *, deterministic: bool = False) -> None:
        """Make a queue in front of ``encoder``; see ``ServedModel`` for ``deterministic``."""
        self._encoder = encoder
        self._deterministic = deterministic
        self._metrics = metrics
        self._queue: deque[_QueuedRequest] = deque()
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
        self, items: Sequence[PreparedText], *, counted: bool = True
    ) -> NDArray[np.float32]:
        """Return the rows of ``items``: float32, shape (len(items), dimensions).

        A row is a unit vector, or the probabilities of a ``Scorer``.

        Cancelling it drops the texts that are not encoded yet.

        Args:
            items: Texts from ``Encoder.prepare``.
            counted: Whether it counts in the metrics; health probes do not.

        Raises:
            BadReplyError: The encoder returned something else.
        """
        vectors = np.empty((len(items), self._encoder.dimensions), dtype=np.float32)
        answer: asyncio.Future[NDArray[np.float32]]
        answer = asyncio.get_running_loop().create_future()
        self._queue.append(_QueuedRequest(items, vectors, answer, counted))
        self._work.set()
        return await answer

    async def run(self) -> None:
        """Encode what is queued, until cancelled."""
        while True:
            await self._work.wait()
            batch = self._next_batch()
            if not batch:
                self._work.clear()
                continue
            await self._encode(batch)
            self._queue.extend(part.request for part in batch if part.request.has_more)

    def _next_batch(self) -> list[_BatchPart]:
        texts, tokens = self._encoder.batch_texts, self._encoder.batch_tokens
        if self._deterministic:
            texts = 1  # kernels sum in another order for another size of the batch
        batch: list[_BatchPart] = []
        while self._queue:
            request = self._queue[0]
            start = request.taken
            while request.has_more:
                item = request.items[request.taken]
                is_first = not batch and request.taken == start
                if not is_first and (texts < 1 or tokens < item.tokens):
                    break
                request.taken += 1
                texts -= 1
                tokens -= item.tokens
            if request.taken > start:
                batch.append(_BatchPart(request, start, request.taken))
            elif request.has_more:  # it does not fit; it is first in the next batch
                break
            self._queue.popleft()
        return batch

    async def _encode(self, batch: Sequence[_BatchPart]) -> None:
        items = [item for part in batch for item in part.items]
        loop = asyncio.get_running_loop()
        self.running = sum(part.request.counted for part in batch)
        try:
            vectors = await loop.run_in_executor(self._thread, self._encoder.encode, items)
            expected = (len(items), self._encoder.dimensions)
            if vectors.shape != expected:
                raise BadReplyError(f"the encoder returned shape {vectors.shape}, not {expected}")
            at = 0
            for part in batch:
                end = at + part.stop - part.start
                self._deliver(part, vectors[at:end])
                at = end
        except Exception as error:  # noqa: BLE001 - every error must reach the waiting requests
            _log.error("the encoder failed on %d texts: %s", len(items), describe_error(error))
            for part in batch:
                part.request.fail(error)
        finally:
            self.running = 0

    def _deliver(self, part: _BatchPart, rows: NDArray[np.float32]) -> None:
        request = part.request
        if request.counted:
            self._metrics.tokens.inc(sum(item.tokens for item in part.items))
            self._metrics.texts.inc(len(rows))
        request.vectors[part.start : part.stop] = rows
        request.encoded += len(rows)
        # A comparison with NaN is false, so this covers numbers that are not finite too.
        if isinstance(self._encoder, Scorer):
            is_right, what = (rows >= 0) & (rows <= 1), "a score that is not from 0 to 1"
        else:
            is_right = is_unit(np.linalg.norm(rows, axis=1))
            what = "a vector that is not finite and unit"
        if not is_right.all():
            request.fail(BadReplyError(f"the encoder returned {what}"))
        elif request.encoded == len(request.items) and not request.answer.done():
            request.answer.set_result(request.vectors)


# ---------------------------------------------------------------- the service


class Phase(Enum):
    """The state of a server."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the server reports of its model.

    Attributes:
        name: The name of the model in requests.
        weight_version: Any text, by which the process that started the server recognises it.
        revision: The requested revision; None if none was requested.
        deterministic: Whether each text is encoded by itself, so that it gets the same vector
            alone and in any batch.
    """

    name: str
    weight_version: str = "default"
    revision: str | None = None
    deterministic: bool = False


class Service:
    """One served model. Lives on one event loop.

    Attributes:
        on_done: Called when the server has drained, or could not load its model.
    """

    def __init__(self, encoder: Encoder, model: ServedModel) -> None:
        self.encoder = encoder
        self.model = model
        self.metrics = Metrics(model.name)
        self.phase = Phase.LOADING
        self._scheduler = Scheduler(encoder, self.metrics, deterministic=model.deterministic)
        self._in_flight = 0
        self._health_check: asyncio.Task[None] | None = None
        self._health_checked_s = -math.inf
        self.on_done: Callable[[], None] = lambda: None
        self.metrics.running.set_function(lambda: self._scheduler.running)
        self.metrics.queued.set_function(lambda: self._in_flight - self._scheduler.running)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load the model and encode in the background of the ``with`` block."""
        tasks = [asyncio.create_task(self._load()), asyncio.create_task(self._scheduler.run())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def can_drain(self) -> bool:
        """Whether there may be requests in flight: while it loads or drains, a signal ends it."""
        return self.phase is Phase.READY

    def drain(self) -> None:
        """Refuse new requests, and finish when those in flight are answered."""
        self.phase = Phase.DRAINING
        _log.info("draining: %d requests in flight", self._in_flight)
        if self._in_flight == 0:
            self.on_done()

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Count one request as in flight.

        Raises:
            RefusedError: The server is loading or draining.
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
                self.on_done()

    def require_ready(self) -> None:
        """Raise while the server takes no requests.

        Raises:
            RefusedError: The server is loading or draining; 503, which clients retry.
        """
        if self.phase is not Phase.READY:
            message = f"The server is {self.phase.value}. Try again."
            raise bodies.RefusedError(message, status=HTTPStatus.SERVICE_UNAVAILABLE)

    async def embed(self, request: bodies.EmbeddingRequest) -> bytes:
        """Return the body of the reply to ``request``. Cancelling it drops the request.

        Raises:
            RefusedError: Another model is requested, a text is too long, or the model does not
                support the request.
            BadReplyError: The encoder failed.
        """
        encoder, model = self.encoder, self.model
        bodies.check_served(request, encoder, model.name)
        items = await asyncio.to_thread(bodies.prepare, request, encoder, model.name)
        vectors = await self._scheduler.embed(items)
        tokens = sum(item.tokens for item in items)
        return await asyncio.to_thread(
            bodies.render_embeddings, model.name, vectors, tokens, request
        )

    async def score(self, request: bodies.ScoreRequest) -> bytes:
        """Do as ``embed``, for prompts of a reranker."""
        encoder, model = self.encoder, self.model
        bodies.check_served(request, encoder, model.name)
        items = await asyncio.to_thread(bodies.prepare, request, encoder, model.name)
        rows = await self._scheduler.embed(items)
        tokens = sum(item.tokens for item in items)
        return await asyncio.to_thread(bodies.render_scores, model.name, rows, tokens)

    async def check_health(self) -> None:
        """Encode one text, without counting it in the metrics; calls within a second share it.

        Anyone may call it, so it must not queue more than one text.

        Raises:
            BadReplyError: The encoder failed.
        """
        is_recent = time.monotonic() - self._health_checked_s < _HEALTH_EVERY_S
        if self._health_check is None or (self._health_check.done() and not is_recent):
            self._health_checked_s = time.monotonic()
            self._health_check = asyncio.create_task(self._encode_probe())
        await asyncio.shield(self._health_check)

    async def _encode_probe(self) -> None:
        items = self.encoder.prepare([_PROBE_TEXT])
        await self._scheduler.embed(items, counted=False)

    async def _load(self) -> None:
        _log.info("loading %s", self.encoder.name)
        began = time.monotonic()
        try:
            await self._scheduler.load()
            await self._encode_probe()
        except Exception as error:  # noqa: BLE001 - the log must contain the reason
            self.phase = Phase.FAILED
            _log.error("cannot serve %s: %s", self.model.name, describe_error(error))
            self.on_done()
        else:
            self.phase = Phase.READY
            _log.info("ready: %s after %.1f s", self.model.name, time.monotonic() - began)

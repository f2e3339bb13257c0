"""Who is encoded next: one thread encodes, and requests take turns on it.

A request is cut into parts. Each turn takes the request at the head of the line, fills one
batch from it, and lets the next ones fill what room is left. Those with texts left go to the end
of the line after the batch, behind whoever came meanwhile. So many small requests travel
together, and a small one waits for one batch behind a request of thousands of texts.

All of this happens on the event loop; only ``Encoder.encode`` runs in the thread, and no lock is
needed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from emberd.errors import BadReplyError
from emberd.norms import is_unit
from emberd.serving.encoder import Encoder, Prepared
from emberd.serving.logs import describe
from emberd.serving.metrics import Metrics

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
    return bool(is_unit(norms).all())

"""One call of a client, or one window of a stream, as counters and traces see it."""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractContextManager
from typing import Any, Final

from emberd import tracing
from emberd.catalog import RERANK
from emberd.client.job import Embedded, Job
from emberd.counters import CANCELLED, COUNTERS, OK
from emberd.settings import Settings

_INTERRUPTS: Final = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt)


class Observation:
    """What is observed of one call, from its start.

    Args:
        settings: The caller's.
        is_whole: It is a whole call, whose duration is counted, and not a window of a stream.
    """

    def __init__(self, settings: Settings, *, is_whole: bool) -> None:
        self._labels = (settings.model, settings.task)
        self._is_whole = is_whole
        self._span = _span(settings) if tracing.is_used() else None
        self._began_s = time.perf_counter()

    def as_current(self) -> AbstractContextManager[Any]:
        """Make its span the parent of those that begin in the block."""
        return tracing.current(self._span)

    def end(self, job: Job, embedded: Embedded) -> None:
        """Note that it succeeded."""
        texts = len(embedded.matrix) - len(embedded.set_aside)
        COUNTERS.call(self._labels, OK, texts, job.tokens, self._seconds())
        if self._span is None:
            return
        attributes: dict[str, Any] = {
            "gen_ai.usage.input_tokens": job.tokens,
            "emberd.texts": len(embedded.matrix),
            "emberd.texts.cached": job.cached,
        }
        if job.server is not None:  # otherwise all came from the cache
            attributes["gen_ai.response.model"] = job.server.model
        tracing.end(self._span, attributes, job.server.url if job.server else None, None)

    def fail(self, error: BaseException | None) -> None:
        """Note that an error ended it; texts of a window that has failed are not counted."""
        is_interrupt = error is None or isinstance(error, _INTERRUPTS)
        kind = CANCELLED if is_interrupt else type(error).__name__
        COUNTERS.call(self._labels, kind, 0, 0, self._seconds())
        tracing.end(self._span, {}, None, kind)

    def _seconds(self) -> float | None:
        return time.perf_counter() - self._began_s if self._is_whole else None


def _span(settings: Settings) -> Any:
    if settings.task == RERANK:
        return tracing.begin("rerank", settings.model, {})
    dimensions = settings.dimensions or settings.known.dimensions
    return tracing.begin(
        "embeddings", settings.model, {"gen_ai.embeddings.dimension.count": dimensions}
    )

"""What the server writes to its standard error: never a key, never a text.

Counters under SGLang's names, so that one reader suits every server.

Lines of progress while one long call is under way that says nothing itself.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from emberd.errors import EmberdError

_FORMAT: Final = "%(asctime)s %(levelname)s %(message)s"


def configure() -> None:
    """Send this package's lines, and the web server's warnings, to standard error."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=_FORMAT)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def describe(error: BaseException) -> str:
    """Return what is known of ``error`` without a piece of somebody's document.

    The text of an error that is not ours may quote what it failed on, so only its type and the
    lines of code that it came through are told.
    """
    if isinstance(error, EmberdError):
        return str(error)
    frames = "".join(traceback.format_tb(error.__traceback__))
    return f"{type(error).__name__}, raised at\n{frames}"


CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

_LABELS: Final = ("model_name",)
_LATENCY_BUCKETS_S: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
    *(2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)


class Metrics:
    """The counters of one server. A request is one HTTP request; probes of health count nowhere.

    Attributes:
        running: Requests of which texts are being encoded now.
        queued: Requests that were taken and are not being encoded now: waiting for their
            turn, being read, or being written.
        requests: Requests that were answered with vectors.
        tokens: Tokens encoded; it grows while a long request is under way.
        aborted: Requests whose client went away.
        latency: Seconds from a request's arrival to its answer.
    """

    def __init__(self, model_name: str) -> None:
        self._registry = CollectorRegistry()
        self.running = Gauge(
            "sglang:num_running_reqs",
            "Requests being encoded.",
            _LABELS,
            registry=self._registry,
        ).labels(model_name)
        self.queued = Gauge(
            "sglang:num_queue_reqs",
            "Requests taken and not being encoded.",
            _LABELS,
            registry=self._registry,
        ).labels(model_name)
        self.requests = self._counter("sglang:num_requests", "Requests answered.", model_name)
        self.tokens = self._counter("sglang:prompt_tokens", "Tokens encoded.", model_name)
        self.aborted = self._counter(
            "sglang:num_aborted_requests", "Requests whose client went away.", model_name
        )
        self.latency = Histogram(
            "sglang:e2e_request_latency_seconds",
            "Seconds from arrival to answer.",
            _LABELS,
            buckets=_LATENCY_BUCKETS_S,
            registry=self._registry,
        ).labels(model_name)

    def render(self) -> bytes:
        """Return the counters in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, model_name: str) -> Counter:
        return Counter(name, text, _LABELS, registry=self._registry).labels(model_name)


_EVERY_S: Final = 2.0
_GB: Final = 1e9

_log = logging.getLogger("emberd.serving")


@contextlib.contextmanager
def telling(step: str, done_bytes: Callable[[], int], all_bytes: int | None) -> Iterator[None]:
    """Log how far ``step`` is, at its beginning and whenever it got further.

    A line only when the figure moved: a log that stands still is how a start that hangs is known.

    Args:
        step: What is being done, such as ``"loading the weights"``.
        done_bytes: Asked from another thread; bytes since some time before the step.
        all_bytes: How many there will be; None when nobody knows.
    """
    ended = threading.Event()
    thread = threading.Thread(
        target=_tell, args=(step, done_bytes, all_bytes, ended), daemon=True, name="progress"
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _tell(
    step: str, done_bytes: Callable[[], int], all_bytes: int | None, ended: threading.Event
) -> None:
    began, told = done_bytes(), ""
    while True:
        figure = _figure(max(0, done_bytes() - began), all_bytes)
        if figure != told:
            told = figure
            _log.info("%s (%s)", step, figure)
        if ended.wait(_EVERY_S):
            return


def _figure(done_bytes: int, all_bytes: int | None) -> str:
    if all_bytes is None:
        return f"{done_bytes / _GB:.1f} GB"
    return f"{min(done_bytes, all_bytes) / _GB:.1f} of {all_bytes / _GB:.1f} GB"

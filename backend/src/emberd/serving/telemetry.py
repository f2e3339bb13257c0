"""What the server reports: metrics, log lines and progress. Never a key, never a text."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import threading
import traceback
from collections import Counter as Counts
from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from emberd.errors import EmberdError

_LABELS: Final = ("model_name",)
_LATENCY_BUCKETS_S: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
    *(2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)
_FORMAT: Final = "%(asctime)s %(levelname)s %(message)s"
_PROGRESS_EVERY_S: Final = 2.0
_GB: Final = 1e9
_WINDOW_S: Final = 60.0
_PER_WINDOW: Final = 10

_log = logging.getLogger("emberd.serving")


class Metrics:
    """The metrics of one server, under SGLang's names, so that one reader fits every server.

    Each HTTP request counts once; health probes do not count.

    Attributes:
        running: Requests with texts in the current batch.
        queued: Other requests in flight: waiting for their turn, being parsed or rendered.
        requests: Requests that were answered with vectors.
        texts: Texts encoded; SGLang counts each text as a request.
        tokens: Tokens encoded; it grows while a long request is in progress.
        aborted: Requests whose client disconnected.
        latency: Seconds from a request's arrival to its reply.
    """

    def __init__(self, model_name: str) -> None:
        registry = self._registry = CollectorRegistry()

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, _LABELS, registry=registry).labels(model_name)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, _LABELS, registry=registry).labels(model_name)

        self.running = gauge("sglang:num_running_reqs", "Requests being encoded.")
        self.queued = gauge("sglang:num_queue_reqs", "Requests taken and not being encoded.")
        self.requests = counter("sglang:num_requests", "Requests answered.")
        self.texts = counter("emberd:texts", "Texts encoded.")
        self.tokens = counter("sglang:prompt_tokens", "Tokens encoded.")
        self.aborted = counter("sglang:num_aborted_requests", "Requests whose client disconnected.")
        self.latency = Histogram(
            "sglang:e2e_request_latency_seconds",
            "Seconds from arrival to answer.",
            _LABELS,
            buckets=_LATENCY_BUCKETS_S,
            registry=registry,
        ).labels(model_name)

    def render(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class RepetitionFilter(logging.Filter):
    """Passes a few warnings of each kind a minute, and counts the others.

    A client without the key can cause as many as it likes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._window_s = -math.inf
        self._counts: Counts[str] = Counts()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether ``record`` is to be written; the first of a minute tells the count."""
        if record.levelno < logging.WARNING:
            return True
        if record.created - self._window_s >= _WINDOW_S:
            left_out = sum(max(0, count - _PER_WINDOW) for count in self._counts.values())
            self._window_s, self._counts = record.created, Counts()
            if left_out:
                record.msg = f"{record.getMessage()} ({left_out} warnings were not written)"
                record.args = ()
        # By its place in the code, because the text may contain anything.
        kind = f"{record.pathname}:{record.lineno}"
        self._counts[kind] += 1
        return self._counts[kind] <= _PER_WINDOW


def configure_logging() -> None:
    """Send this package's log lines, and the web server's warnings, to standard error."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=_FORMAT)
    for handler in logging.getLogger().handlers:
        handler.addFilter(RepetitionFilter())
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def describe_error(error: BaseException) -> str:
    """Return a description of ``error`` that contains no part of a user's text.

    The message of an error from another library may quote the text that it failed on, so only its
    type and its traceback are returned.
    """
    if isinstance(error, EmberdError):
        return str(error)
    frames = "".join(traceback.format_tb(error.__traceback__))
    return f"{type(error).__name__}, raised at\n{frames}"


@contextlib.contextmanager
def log_progress(step: str, done_bytes: Callable[[], int], all_bytes: int | None) -> Iterator[None]:
    """Log how far a long call is that logs nothing itself, at its start and when it advances.

    A line is written only when the figure changes: a start that hangs is recognised by a log
    without new lines.

    Args:
        step: The action, such as ``"loading the weights"``.
        done_bytes: Called in another thread; returns bytes since some time before the step.
        all_bytes: The total; None if it is unknown.
    """
    ended = threading.Event()
    first = done_bytes()

    def watch() -> None:
        logged = ""
        while True:
            done = max(0, done_bytes() - first)
            if all_bytes is None:
                figure = f"{done / _GB:.1f} GB"
            else:
                figure = f"{min(done, all_bytes) / _GB:.1f} of {all_bytes / _GB:.1f} GB"
            if figure != logged:
                logged = figure
                _log.info("%s (%s)", step, figure)
            if ended.wait(_PROGRESS_EVERY_S):
                return

    thread = threading.Thread(target=watch, daemon=True, name="progress")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()

"""Counters under SGLang's names, so that one reader suits every server."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

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

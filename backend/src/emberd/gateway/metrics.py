"""The metrics of the gateway, in Prometheus' format. Never a key, never a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from emberd.catalog import EMBED, RERANK
from emberd.counters import BUCKETS_S
from emberd.prometheus import PrometheusCollector
from emberd.serving import exchange

# A count that is first seen with the value 1 is no increase for Prometheus, so these are shown with
# 0 from the beginning: what a request for a model ends with, and one that names none.
_ANSWERS: Final = (200, 400, 413, exchange.CLIENT_CLOSED_REQUEST, 500, 502, 503, 504)
_UNNAMED: Final = (400, 404, 408, 413, exchange.CLIENT_CLOSED_REQUEST, 500, 503)
_REASONS: Final = ("page", "remote", "key", "connections")
_ROUTES: Final = {EMBED: ("embeddings", ("document", "query")), RERANK: ("rerank", ("pair",))}


class GatewayMetrics:
    """Counters of one gateway, and emberd's own metrics for the models that it serves.

    Args:
        models: The served models: name -> what it does.

    Attributes:
        requests: Requests that were answered, by route, model and status; 499 for those whose
            client disconnected. The model is empty if none was found.
        seconds: Time from a request's arrival to its reply, by route.
        texts: Texts and documents of requests that succeeded, by model and role.
        tokens: Tokens that servers read for them, by model.
        refused: Requests that were refused before a route: page, remote, key or connections.
        in_flight: Requests that are being answered.
        reserved: Bytes of the memory budget that they take.
    """

    def __init__(self, models: Mapping[str, str]) -> None:
        self._registry = registry = CollectorRegistry()
        registry.register(PrometheusCollector(models=models))

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"emberd_gateway_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"emberd_gateway_{name}", text, registry=registry)

        self.requests = counter("requests", "Requests answered.", "route", "model", "status")
        self.texts = counter("texts", "Texts and documents answered.", "model", "role")
        self.tokens = counter("tokens", "Tokens that servers read.", "model")
        self.refused = counter("refused", "Requests refused before a route.", "reason")
        self.in_flight = gauge("requests_in_flight", "Requests being answered.")
        self.reserved = gauge("reserved_bytes", "Bytes of the memory budget in use.")
        self.seconds = Histogram(
            "emberd_gateway_request_seconds",
            "Seconds from arrival to reply.",
            ("route",),
            buckets=BUCKETS_S,
            registry=registry,
        )
        for model, task in models.items():
            route, roles = _ROUTES[task]
            self.tokens.labels(model)
            self.seconds.labels(route)
            for role in roles:
                self.texts.labels(model, role)
            for name, statuses in ((model, _ANSWERS), ("", _UNNAMED)):
                for status in statuses:
                    self.requests.labels(route, name, status)
        for reason in _REASONS:
            self.refused.labels(reason)

    def render(self) -> bytes:
        """Return the metrics in Prometheus' text format; reads files, so not on an event loop."""
        return generate_latest(self._registry)

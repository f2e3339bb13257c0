"""Spans of OpenTelemetry, if this process uses it.

A process that has configured OpenTelemetry has imported ``opentelemetry.trace``. It is looked up
among the imported modules at each call: so emberd never imports it by itself, and a process without
it pays for one look-up in a dictionary.

The names are those of the semantic conventions for generative AI; see ``docs/monitoring``. A span
never contains a text, nor the message of an error, which may quote one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final
from urllib.parse import urlsplit

_MODULE: Final = "opentelemetry.trace"
_PARENT: Final = "traceparent"
_PROVIDER: Final = "emberd"
_PORTS: Final = {"http": 80, "https": 443}


def _api() -> Any:
    """Return the module; None if it is not imported, or not completely."""
    module = sys.modules.get(_MODULE)
    return module if hasattr(module, "use_span") else None


def is_used() -> bool:
    """Return whether this process may record spans."""
    return _api() is not None


def begin(operation: str, model: str, attributes: Mapping[str, Any]) -> Any:
    """Begin a span of a client; None if no provider of spans is configured.

    Args:
        operation: ``gen_ai.operation.name``.
        model: The model that was requested.
        attributes: More attributes; what is None is left out.
    """
    if (trace := _api()) is None:
        return None
    span = trace.get_tracer("emberd").start_span(
        f"{operation} {model}",
        kind=trace.SpanKind.CLIENT,
        attributes={
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": _PROVIDER,
            "gen_ai.request.model": model,
            **{name: value for name, value in attributes.items() if value is not None},
        },
    )
    # Also one that is not sampled: those that begin within it follow its decision.
    return span if span.get_span_context().is_valid else None


def current(span: Any) -> AbstractContextManager[Any]:
    """Make a span the parent of those that begin in the block."""
    trace = _api()
    if span is None or trace is None:
        return nullcontext()
    how = {"end_on_exit": False, "record_exception": False, "set_status_on_exception": False}
    manager: AbstractContextManager[Any] = trace.use_span(span, **how)
    return manager


def end(span: Any, attributes: Mapping[str, Any], url: str | None, error: str | None) -> None:
    """End a span.

    Args:
        span: What ``begin`` returned.
        attributes: More attributes.
        url: Root of the server that answered; None if there was none.
        error: The type of the error that ended the call; None if it succeeded.
    """
    if span is None:
        return
    for name, value in attributes.items():
        span.set_attribute(name, value)
    if url is not None:
        place = urlsplit(url)
        span.set_attribute("server.address", place.hostname or "")
        span.set_attribute("server.port", place.port or _PORTS.get(place.scheme, 0))
    trace = _api()
    if error is not None and trace is not None:
        span.set_attribute("error.type", error)
        span.set_status(trace.Status(trace.StatusCode.ERROR))
    span.end()


@contextmanager
def remote_parent(headers: Mapping[str, str]) -> Iterator[None]:
    """Make the trace context of an incoming request the parent of spans in the block.

    An instrumentation of the web server may have done that already.
    """
    trace = _api()
    if (
        trace is None
        or _PARENT not in headers
        or trace.get_current_span().get_span_context().is_valid
    ):
        yield
        return
    from opentelemetry import context, propagate

    token = context.attach(propagate.extract(headers))
    try:
        yield
    finally:
        context.detach(token)

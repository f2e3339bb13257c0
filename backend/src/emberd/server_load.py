"""What a server is doing, by its own metrics: how much it computes, and how long that takes.

The counters only grow, so a rate needs two readings. SGLang counts each text as a request, and
measures the latency of each text. emberd's own servers measure the latency of HTTP requests, and
count texts in addition.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal

from emberd import probe
from emberd.system.listeners import Listener

_TEXTS: Final = b"emberd:texts_total"
_LATENCY: Final = b"sglang:e2e_request_latency_seconds_bucket"
_BOUND: Final = re.compile(rb'[{,]\s*le="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Reading:
    """The counters of a server at one moment.

    Attributes:
        at_s: When they were read, on the monotonic clock.
        texts: Texts computed since its start; None if it does not count them.
        tokens: Tokens computed since its start.
        running: Requests that it computes now.
        queued: Requests that wait now.
        latencies: Seconds -> how many requests took at most that long.
    """

    at_s: float
    texts: float | None
    tokens: float
    running: float
    queued: float
    latencies: Mapping[float, float]


@dataclass(frozen=True, slots=True)
class Quantile:
    """A quantile of latencies, as exactly as the buckets of the histogram tell.

    Attributes:
        seconds: The latency.
        sign: ``"<"`` if it is less than ``seconds``, the lowest bound of the histogram; ``">"`` if
            it is more, and ``seconds`` is the highest one.
    """

    seconds: float
    sign: Literal["", "<", ">"] = ""


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """What a server did between two readings.

    Attributes:
        running: Requests that it computed at the second one.
        queued: Requests that waited at the second one.
        seconds: Time between the readings; None without a first reading.
        texts_per_s: Texts computed per second; None without a first reading.
        tokens_per_s: Tokens computed per second; None without a first reading.
        p50: Median latency; None if no request ended.
        p95: The latency that 95 % of the requests did not exceed; None if no request ended.
    """

    running: float
    queued: float
    seconds: float | None = None
    texts_per_s: float | None = None
    tokens_per_s: float | None = None
    p50: Quantile | None = None
    p95: Quantile | None = None


def read(url: str, *, listener: Listener | None = None) -> Reading | None:
    """Return the counters of a server; None if it shows none that are known here.

    No text is computed for it, and it does not count as use. No key is sent: all servers that have
    these metrics show them without one.
    """
    names = (*(probe.RUNNING, probe.QUEUED, probe.REQUESTS, probe.TOKENS), _TEXTS, _LATENCY)
    found = probe.samples(url, names, listener=listener)
    at_s = time.monotonic()
    if not found:
        return None
    sums = probe.sums_of(found)
    latencies: dict[float, float] = {}
    for name, labels, value in found:
        if name == _LATENCY and (bound := _BOUND.search(labels)):
            with suppress(ValueError):
                seconds = float(bound[1])
                latencies[seconds] = latencies.get(seconds, 0.0) + value
    return Reading(
        at_s=at_s,
        texts=sums.get(_TEXTS, sums.get(probe.REQUESTS)),
        tokens=sums.get(probe.TOKENS, 0.0),
        running=sums.get(probe.RUNNING, 0.0),
        queued=sums.get(probe.QUEUED, 0.0),
        latencies=dict(sorted(latencies.items())),
    )


def between(before: Reading | None, now: Reading) -> ServerLoad:
    """Return what a server did between two readings.

    Args:
        before: The first one; None if there is none.
        now: The second one.
    """
    if before is None or now.at_s <= before.at_s or now.tokens < before.tokens:
        return ServerLoad(now.running, now.queued)
    seconds = now.at_s - before.at_s
    # A counter with labels appears with its first request.
    texts = None if now.texts is None else now.texts - (before.texts or 0.0)
    ended = {s: count - before.latencies.get(s, 0.0) for s, count in now.latencies.items()}
    return ServerLoad(
        running=now.running,
        queued=now.queued,
        seconds=seconds,
        texts_per_s=None if texts is None else texts / seconds,
        tokens_per_s=(now.tokens - before.tokens) / seconds,
        p50=_quantile(ended, 0.5),
        p95=_quantile(ended, 0.95),
    )


def _quantile(ended: Mapping[float, float], part: float) -> Quantile | None:
    """Return a quantile of a histogram, interpolated within its bucket.

    Args:
        ended: Upper bound -> count of all latencies up to it, in order.
        part: Which one, from 0 to 1.
    """
    rank = max(ended.values(), default=0.0) * part
    if rank <= 0:
        return None
    lower_s, below = 0.0, 0.0
    for upper_s, count in ended.items():
        if count >= rank:
            if not below and not lower_s:
                return Quantile(upper_s, "<")
            if math.isinf(upper_s):
                return Quantile(lower_s, ">")
            return Quantile(lower_s + (upper_s - lower_s) * (rank - below) / (count - below))
        lower_s, below = upper_s, count
    return None

"""What two readings of a server's metrics say about what it does."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from emberd import probe, server_load
from emberd.server_load import Quantile, Reading, ServerLoad

BUCKETS = ("0.1", "0.2", "0.4", "+Inf")


def _metrics(counts: Mapping[str, int], more: str = "") -> bytes:
    """Return metrics of a server whose latencies have these cumulative counts by upper bound."""
    name = "sglang:e2e_request_latency_seconds_bucket"
    labels = 'model_name="a{},\\"b"'
    lines = [f'{name}{{le="{bound}",{labels}}} {count}' for bound, count in counts.items()]
    return "\n".join([*lines, 'sglang:num_running_reqs{engine_type="unified"} 3.0', more]).encode()


def _read(monkeypatch: pytest.MonkeyPatch, body: bytes, status: int = 200) -> Reading | None:
    reply = probe.ProbeReply(status, body)
    monkeypatch.setattr(probe, "get", lambda *_, **__: reply)
    return server_load.read("http://127.0.0.1:1")


def _reading(at_s: float, texts: float, *counts: float) -> Reading:
    latencies = dict(zip(map(float, BUCKETS), counts, strict=False))
    return Reading(at_s, texts, texts * 10, 1, 2, latencies)


def test_samples_of_all_labels_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"0.1": 1, "+Inf": 4}
    more = (
        'sglang:num_requests_total{is_streaming="no"} 5\n'
        'sglang:num_requests_total{is_streaming="yes"} 2\n'
        "sglang:num_queue_reqs 6\nsglang:prompt_tokens_total 70\n"
    )
    found = _read(monkeypatch, _metrics(counts, more) + b"\n" + _metrics(counts))
    assert found is not None
    assert (found.texts, found.tokens, found.running, found.queued) == (7, 70, 6, 6)
    assert found.latencies == {0.1: 2, float("inf"): 8}


def test_a_server_that_counts_texts_and_requests_gives_its_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    more = 'sglang:num_requests_total 5\nemberd:texts_total{model_name="a"} 500\n'
    found = _read(monkeypatch, _metrics({}, more))
    assert found is not None
    assert found.texts == 500


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"<html>"), (200, b"sglang:num_running_reqs many\n"), (404, b""), (503, b"{}")],
)
def test_a_server_without_known_metrics_has_no_reading(
    status: int, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _read(monkeypatch, body, status) is None


def test_rates_are_those_between_the_readings() -> None:
    found = server_load.between(_reading(10, 100), _reading(14, 120))
    assert (found.seconds, found.texts_per_s, found.tokens_per_s) == (4, 5, 50)
    assert (found.running, found.queued) == (1, 2)


def test_without_a_first_reading_there_are_no_rates() -> None:
    now = _reading(10, 100, 50, 60, 70, 80)
    assert server_load.between(None, now) == ServerLoad(1, 2)
    # The server was started again: its counters begin at 0.
    assert server_load.between(_reading(5, 500), now) == ServerLoad(1, 2)


@pytest.mark.parametrize(
    ("counts", "p50", "p95"),
    [
        ((0, 100, 100, 100), Quantile(0.15), Quantile(0.195)),
        ((0, 50, 100, 100), Quantile(0.2), Quantile(0.38)),
        ((100, 100, 100, 100), Quantile(0.1, "<"), Quantile(0.1, "<")),
        ((90, 90, 100, 100), Quantile(0.1, "<"), Quantile(0.3)),
        ((0, 0, 0, 100), Quantile(0.4, ">"), Quantile(0.4, ">")),
        ((0, 0, 0, 0), None, None),
    ],
)
def test_quantiles_are_of_the_requests_between_the_readings(
    counts: tuple[int, ...], p50: Quantile | None, p95: Quantile | None
) -> None:
    before = (7, 8, 9, 10)
    now = [first + count for first, count in zip(before, counts, strict=True)]
    load = server_load.between(_reading(0, 0, *before), _reading(1, 100, *now))
    for found, expected in ((load.p50, p50), (load.p95, p95)):
        if expected is None or found is None:
            assert found is expected
        else:
            assert found.seconds == pytest.approx(expected.seconds)
            assert found.sign == expected.sign

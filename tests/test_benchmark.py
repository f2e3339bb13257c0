"""What a server's speed is measured from: the right texts, calls, counts and times."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emberd import Embedder, RejectedError, benchmark
from emberd.benchmark import BulkRate, QueryLatency
from fake_server import MODEL, FakeServer

RATE = BulkRate(
    tokens_per_text=16,
    words_per_text=14,
    batch_size=8,
    texts=100,
    seconds=2,
    client_cpu_cores=0.1,
    server_process_cpu_cores=0.2,
)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


def _run(
    server: FakeServer, tokens: list[int], sizes: list[int], seconds: float = 0.5, **settings: Any
) -> list[QueryLatency | BulkRate | None]:
    embedder = Embedder(MODEL, base_url=server.url, **settings)
    return list(benchmark.run(embedder, tokens, sizes, seconds, lambda _: None))


def _generated(server: FakeServer) -> list[list[str]]:
    """Return the inputs of the requests without those of the verification."""
    return [texts for texts in server.embedded if all(re.fullmatch("[a-z ]+", t) for t in texts)]


@pytest.mark.parametrize("length", [1, 100])
def test_each_text_is_sent_once_and_none_is_cached(
    server: FakeServer, tmp_path: Path, length: int
) -> None:
    cache = tmp_path / "cache.db"
    # On a loaded machine a request of 16 texts would not fit into its part of a shorter time.
    found = _run(server, [length], [1, 16], seconds=3, cache=f"sqlite://{cache}")
    sent = [text for texts in _generated(server) for text in texts]
    rates = [each for each in found if isinstance(each, BulkRate)]
    assert len(rates) == 2
    assert sum(rate.texts for rate in rates) <= len(sent)
    assert len(sent) == len(set(sent))
    assert not cache.exists()


def test_a_request_has_as_many_texts_as_the_batch_size(server: FakeServer) -> None:
    _run(server, [100], [5, 13], seconds=3)
    sizes = {len(texts) for texts in _generated(server)}
    assert {1, 5, 13} < sizes
    assert max(sizes - {5, 13}) <= 16  # those whose tokens are counted, and what is left of a call


@pytest.mark.parametrize(("most", "setting"), [(8, 8), (16, 256)])
def test_no_request_exceeds_what_the_server_accepts(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, most: int, setting: int
) -> None:
    def refusal(inputs: list[Any]) -> str | None:
        return f"batch size {len(inputs)} > {most}" if len(inputs) > most else None

    monkeypatch.setattr(server, "_refusal", refusal)
    assert len(_run(server, [16], [most], batch_size=setting)) == 2


def test_the_tokens_are_those_that_the_server_counts(server: FakeServer) -> None:
    found = _run(server, [200], [1])
    words = next(each.words_per_text for each in found if each is not None)
    counted = next(texts for texts in _generated(server) if len(texts[0].split()) == words)
    assert len(counted) > 1
    # The server's tokenizer makes a token of each byte, and one for the end.
    mean = sum(len(text) + 1 for text in counted) / len(counted)
    queries, rate = found
    assert queries is not None
    assert isinstance(rate, BulkRate)
    assert queries.tokens_per_text == mean
    assert rate.tokens_per_text == pytest.approx(200, rel=0.2)
    assert rate.tokens_per_text is not None
    assert rate.tokens_per_s == pytest.approx(rate.tokens_per_text * rate.texts / rate.seconds)


@pytest.mark.parametrize("counts_texts", [False, True])
def test_a_server_that_counts_no_tokens_has_rates_in_texts(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, counts_texts: bool
) -> None:
    answer = server._reply

    def reply(body: dict[str, Any], inputs: list[Any]) -> dict[str, Any]:
        usage = {"prompt_tokens": len(inputs)} if counts_texts else None
        return {**answer(body, inputs), "usage": usage}

    monkeypatch.setattr(server, "_reply", reply)
    server.has_tokenizer = False
    found = _run(server, [16, 64], [4])
    rates = [each for each in found if isinstance(each, BulkRate)]
    assert {(rate.tokens_per_text, rate.tokens_per_s) for rate in rates} == {(None, None)}
    assert max(benchmark.shares(rates)) == 1


def test_texts_are_cut_to_the_context(server: FakeServer) -> None:
    server.context_tokens = 500
    found = _run(server, [200, 2_000, 3_000], [4])
    lengths = {each.tokens_per_text for each in found if each is not None}
    assert max(filter(None, lengths)) == pytest.approx(500 - 500 // 16 - 64, rel=0.1)
    assert len({each.words_per_text for each in found if each is not None}) == 2


def test_a_long_query_instruction_fits_the_context_too(server: FakeServer) -> None:
    template = "Given a web search query, " + "retrieve relevant passages " * 6 + "{text}"
    server.context_tokens = 600
    queries, _ = _run(server, [2_000], [4], query_instruction=template)
    assert queries is not None
    assert 450 < (queries.tokens_per_text or 0) < 600


def test_no_time_is_shorter_than_the_servers_delay(server: FakeServer) -> None:
    server.latency_s = 0.05
    queries, rate = _run(server, [100], [4], max_concurrency=2)
    assert isinstance(queries, QueryLatency)
    assert isinstance(rate, BulkRate)
    assert min(queries.times_s) >= 0.05
    assert (queries.percentile_ms(50) or 0) >= 50
    assert rate.texts_per_s <= 2 * 4 / 0.05


def test_a_batch_size_for_which_time_is_too_short_is_left_out(server: FakeServer) -> None:
    server.latency_s = 0.3
    *_, one, many = _run(server, [100], [1, 64], seconds=0.1)
    assert isinstance(one, BulkRate)
    assert one.texts == 1
    assert many is None
    assert 64 not in map(len, server.embedded)


def test_tokens_are_counted_after_a_restart(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def restart(embedder: Embedder, text: str) -> Any:
        monkeypatch.undo()
        server.die()
        server.revive(server.port)
        return embedder.embed_query(text)

    monkeypatch.setattr(Embedder, "embed_query", restart)
    queries, rate = _run(server, [100], [4])
    assert queries is not None
    assert rate is not None
    assert None not in (queries.tokens_per_text, rate.tokens_per_text)


def test_the_time_begins_when_the_server_is_verified(server: FakeServer) -> None:
    def report(_: str) -> None:
        server.latency_s = 0

    server.latency_s = 0.2
    embedder = Embedder(MODEL, base_url=server.url)
    queries = next(benchmark.run(embedder, [100], [4], 1, report))
    assert isinstance(queries, QueryLatency)
    assert sum(queries.times_s) > 0.3  # of half a second


def test_results_before_an_error_are_known(server: FakeServer) -> None:
    def report(doing: str) -> None:
        if doing.startswith("documents"):
            server.refuses = " "

    embedder = Embedder(MODEL, base_url=server.url)
    results = benchmark.run(embedder, [16], [4], 0.5, report)
    assert isinstance(next(results), QueryLatency)
    with pytest.raises(RejectedError):
        next(results)


def test_a_percentile_needs_queries_beyond_it() -> None:
    times_s = tuple(number / 1000 for number in range(100, 0, -1))
    latency = QueryLatency(16, 14, times_s)
    assert [latency.percentile_ms(n) for n in benchmark.PERCENTILES] == [50, 95, 99]
    assert QueryLatency(16, 14, times_s[:99]).percentile_ms(99) is None
    assert QueryLatency(16, 14, times_s[:19]).percentile_ms(95) is None


def test_shares_are_of_the_most_tokens_a_second() -> None:
    long = replace(RATE, tokens_per_text=160, words_per_text=140, texts=50)
    assert benchmark.shares([RATE, long]) == [0.2, 1]
    assert benchmark.shares([]) == []


@pytest.mark.parametrize(
    ("server", "main_cores", "client_cores", "names"),
    [
        ("sglang", 0.97, 0.3, "SGLang's main process"),
        ("sglang", 0.5, 0.95, "this client"),
        ("sglang", 0.5, 0.5, ""),
        ("sglang", None, 0.5, ""),
        ("emberd", 1.9, 0.3, ""),  # where the model runs in the process that listens
    ],
)
def test_a_limit_is_stated_only_if_it_was_seen(
    server: str, main_cores: float | None, client_cores: float, names: str
) -> None:
    rate = replace(RATE, client_cpu_cores=client_cores, server_process_cpu_cores=main_cores)
    slower = replace(rate, texts=10, client_cpu_cores=1, server_process_cpu_cores=1)
    found = list(benchmark.limits([rate, slower], server))
    assert [names in text for text in found] == ([True] if names else [])


def test_the_work_of_both_sides_is_measured(server: FakeServer) -> None:
    _, rate = _run(server, [100], [64])
    assert isinstance(rate, BulkRate)
    # The fake server is in this process.
    assert rate.server_process_cpu_cores == pytest.approx(rate.client_cpu_cores, rel=0.2, abs=0.2)
    assert rate.client_cpu_cores > 0.1

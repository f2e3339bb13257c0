"""emberd's metrics, as a registry of prometheus_client shows them."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import prometheus_client
import psutil
import pytest

import emberd
import forked
import waiting
from emberd.client import retry
from emberd.counters import COUNTERS
from emberd.engines import gpu_usage
from emberd.errors import RequestError, SettingError, StartError, TextTooLongError
from emberd.manager import history
from emberd.verified_manager import Manager
from fake_reranker import MODEL as RERANKER
from fake_reranker import FakeReranker
from fake_server import QWEN, FakeServer
from homes import Stub, home, manager, server_of, stub
from http_server import reply
from source_tree import ROOT

__all__ = ["home", "manager", "stub"]

Samples = Callable[[], dict[str, float]]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    COUNTERS.after_fork_in_child()
    COUNTERS._users.clear()


@pytest.fixture
def samples(home: Path, monkeypatch: pytest.MonkeyPatch) -> Samples:
    """Returns all samples of a new registry, by name with labels."""
    monkeypatch.setattr("emberd.prometheus._KEPT_S", 0.0)
    registry = prometheus_client.CollectorRegistry(auto_describe=True)
    registry.register(emberd.PrometheusCollector(home))

    def read() -> dict[str, float]:
        text = prometheus_client.generate_latest(registry).decode()
        pairs = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    return read


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(model=QWEN, dimensions=1024) as running:
        yield running


def of(name: str, **labels: str) -> str:
    inside = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    return f"emberd_{name}{{{inside}}}" if labels else f"emberd_{name}"


def client(name: str, **labels: str) -> str:
    return of(f"client_{name}", model=QWEN, task="embed", **labels)


def test_calls_are_counted_with_texts_tokens_and_duration(
    server: FakeServer, samples: Samples
) -> None:
    embedder = emberd.Embedder(QWEN, base_url=server.url)
    embedder.embed_documents(["one", "two"])
    embedder.embed_query("three")
    asyncio.run(embedder.aembed_query("four"))
    found = samples()
    assert found[client("calls_total", outcome="ok")] == 3
    assert found[client("texts_total")] == 4
    assert found[client("tokens_total")] > 4
    assert found[client("requests_total", outcome="200")] == 3
    assert found[client("batches_total")] == 3
    assert found[client("call_seconds_count")] == 3
    assert found[client("call_seconds_sum")] > 0
    assert found[client("call_seconds_bucket", le="+Inf")] == 3


def test_what_may_be_counted_is_shown_with_0_before_the_first_use(
    server: FakeServer, samples: Samples, tmp_path: Path
) -> None:
    """Prometheus takes a count that it first sees with the value 1 for no increase."""
    cached = emberd.Embedder(QWEN, base_url=server.url, cache=f"sqlite:///{tmp_path}/c.db")
    cached.ensure()
    with FakeReranker() as scores:
        emberd.Reranker(RERANKER, base_url=scores.url).ensure()
    cached.using(dimensions=512)
    found = samples()
    assert set(found.values()) == {0}
    kinds = [("calls_total", "ok"), ("calls_total", "ServerUnavailableError")]
    kinds += [("requests_total", "200"), *(("retries_total", each) for each in retry.RETRIED)]
    for model, task in ((QWEN, "embed"), (RERANKER, "rerank")):
        of_model = {"model": model, "task": task}
        for name, outcome in kinds:
            assert of(f"client_{name}", **of_model, outcome=outcome) in found
        for name in ("texts", "tokens", "batches", "merged_batches", "lost_servers"):
            assert of(f"client_{name}_total", **of_model) in found
        assert of("client_call_seconds_count", **of_model) in found
        assert of("server_adoptions_total", model=model) in found
        assert of("server_starts_total", model=model, outcome="failed") in found
        assert of("server_ends_total", model=model, reason="crashed") in found
        assert of("server_start_failures_total", model=model, phase="planning") in found
        for name in ("hits", "misses"):
            assert (of(f"cache_{name}_total", model=model) in found) is (task == "embed")


def test_an_object_that_is_not_used_adds_no_series(samples: Samples) -> None:
    before = samples()
    made = emberd.Embedder(QWEN)
    pickle.loads(pickle.dumps(made.replace(dimensions=512)))
    emberd.Reranker(RERANKER)
    assert samples() == before


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_each_status_after_which_a_request_is_sent_again_is_known_beforehand(
    server: FakeServer, samples: Samples, status: int
) -> None:
    embedder = emberd.Embedder(QWEN, base_url=server.url)
    embedder.ensure()
    before = set(samples())
    server.first.append(reply(status, {}))
    embedder.embed_query("again")
    found = samples()
    assert found[client("retries_total", outcome=str(status))] == 1
    assert set(found) == before


def test_windows_of_a_stream_are_counted_without_a_duration(
    server: FakeServer, samples: Samples
) -> None:
    embedder = emberd.Embedder(QWEN, base_url=server.url)
    assert len(list(embedder.iter_documents(str(number) for number in range(3000)))) == 3000
    found = samples()
    assert found[client("texts_total")] == 3000
    assert found[client("calls_total", outcome="ok")] > 1
    assert found[client("call_seconds_count")] == 0


def test_errors_are_counted_by_their_type(server: FakeServer, samples: Samples) -> None:
    embedder = emberd.Embedder(QWEN, base_url=server.url)
    with pytest.raises(TextTooLongError):
        embedder.embed_query("long " * 2000)
    server.first.append(reply(400, {"message": "no"}))
    with pytest.raises(RequestError):
        embedder.embed_query("refused")
    found = samples()
    assert found[client("calls_total", outcome="TextTooLongError")] == 1
    assert found[client("calls_total", outcome="RejectedError")] == 1
    assert found[client("requests_total", outcome="400")] >= 1


def test_requests_that_are_sent_again_are_counted_by_the_reason(
    server: FakeServer, samples: Samples
) -> None:
    embedder = emberd.Embedder(QWEN, base_url=server.url)
    embedder.ensure()
    server.first.extend([reply(503, {}), reply(503, {})])
    embedder.embed_query("again")
    found = samples()
    assert found[client("retries_total", outcome="503")] == 2
    assert found[client("requests_total", outcome="200")] == 1


def test_requests_whose_call_is_cancelled_are_counted(server: FakeServer, samples: Samples) -> None:
    embedder = emberd.Embedder(QWEN, base_url=server.url)
    embedder.ensure()
    server.latency_s = 30.0
    before = len(server.embedded)

    async def cancelled() -> None:
        call = asyncio.create_task(embedder.aembed_query("a"))
        await asyncio.to_thread(waiting.until, lambda: len(server.embedded) > before)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await embedder.aclose()

    asyncio.run(cancelled())
    assert samples()[client("requests_total", outcome="cancelled")] == 1


def test_batches_that_share_a_request_are_counted(server: FakeServer, samples: Samples) -> None:
    embedder = emberd.Embedder(QWEN, base_url=server.url, max_concurrency=1)
    embedder.ensure()
    server.latency_s = 0.2
    threads = [threading.Thread(target=embedder.embed_query, args=(f"{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = samples()
    assert found[client("batches_total")] == 8
    assert found[client("merged_batches_total")] > 1
    assert found[client("requests_total", outcome="200")] < 8


def test_cache_hits_misses_and_errors_are_counted(
    server: FakeServer, samples: Samples, tmp_path: Path
) -> None:
    embedder = emberd.Embedder(QWEN, base_url=server.url, cache=f"sqlite:///{tmp_path}/c.db")
    embedder.embed_documents(["one", "two"])
    embedder.embed_documents(["two", "three"])
    found = samples()
    assert found[of("cache_hits_total", model=QWEN)] == 1
    assert found[of("cache_misses_total", model=QWEN)] == 3
    assert found[of("cache_errors_total")] == 0
    dead = emberd.Embedder(QWEN, base_url=server.url, cache="redis://127.0.0.1:1")
    dead.embed_documents(["four"])
    assert samples()[of("cache_errors_total")] >= 1


def test_rerankers_are_counted_by_their_task(samples: Samples) -> None:
    with FakeReranker() as running:
        reranker = emberd.Reranker(RERANKER, base_url=running.url)
        reranker.rerank("question", ["one", "two"])
    assert samples()[of("client_texts_total", model=RERANKER, task="rerank")] == 2


def test_a_forked_child_begins_with_no_counts(server: FakeServer, samples: Samples) -> None:
    embedder = emberd.Embedder(QWEN, base_url=server.url)
    embedder.embed_query("parent")

    def child() -> None:
        assert samples()[client("texts_total")] == 0
        embedder.embed_query("child")
        assert samples()[client("texts_total")] == 1

    forked.run(child)


# ---------------------------------------------------------------- servers


def test_starts_ends_phases_and_states_of_servers_are_shown(
    manager: Manager, stub: Stub, samples: Samples
) -> None:
    spec = stub()
    labels = {"model": spec.model}
    shown = of("servers", **labels, engine="stubs.engine", state="ready")
    first = manager.ensure(spec)
    found = samples()
    assert found[shown] == 1
    assert found[of("server_starts_total", **labels, outcome="ready")] == 1
    assert found[of("server_starts_total", **labels, outcome="failed")] == 0
    assert found[of("server_ends_total", **labels, reason="crashed")] == 0
    phases = [name for name in found if name.startswith("emberd_server_start_phase_seconds_sum")]
    assert len(phases) > 1
    engine = server_of(psutil.Process(manager.status()[0].supervisor_pid))
    assert engine is not None
    engine.kill()
    waiting.until(lambda: not manager.is_current(first))
    waiting.until(lambda: samples()[of("server_ends_total", **labels, reason="crashed")] == 1)
    assert samples()[shown] == 0


def test_a_start_that_failed_is_shown_with_its_phase(
    manager: Manager, stub: Stub, samples: Samples
) -> None:
    with pytest.raises(StartError):
        manager.ensure(stub(faults="dies-at-start"))
    found = samples()
    assert found[
        of("server_starts_total", model=stub(faults="dies-at-start").model, outcome="failed")
    ]
    failed = {name for name, count in found.items() if "start_failures" in name and count}
    assert len(failed) == 1
    assert 'phase=""' not in failed.pop()


def test_planned_and_used_gpu_memory_is_shown(
    manager: Manager, stub: Stub, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def memory_of(uuids: list[str], pids: list[int]) -> int:
        seen.extend(pids)
        return 5 << 30

    monkeypatch.setattr(gpu_usage, "memory_of", memory_of)
    spec = stub(claims="GPU-1", takes=6 << 30, has=40 << 30)
    server = manager.ensure(spec)
    labels = {"model": spec.model, "gpu": "GPU-1"}
    found = samples()
    assert found[of("server_gpu_planned_bytes", **labels)] == 6 << 30
    assert found[of("server_gpu_used_bytes", **labels)] == 5 << 30
    engine = server_of(psutil.Process(manager.status()[0].supervisor_pid))
    assert engine is not None
    assert engine.pid in seen
    assert server.started


def test_models_that_are_not_served_have_no_name(home: Path, stub: Stub, manager: Manager) -> None:
    registry = prometheus_client.CollectorRegistry()
    registry.register(emberd.PrometheusCollector(home, models=["stub/served"]))
    manager.ensure(stub("secret"))
    COUNTERS.call(("stub/secret", "embed"), "ok", 1, 1, 0.1)
    COUNTERS.call(("stub/secret-2", "embed"), "ok", 1, 1, 0.1)
    COUNTERS.call(("stub/served", "embed"), "ok", 1, 1, 0.1)
    text = prometheus_client.generate_latest(registry).decode()
    assert "secret" not in text
    assert 'emberd_client_texts_total{model="other",task="embed"} 2.0' in text
    assert 'emberd_client_call_seconds_count{model="other",task="embed"} 2.0' in text
    assert 'model="stub/served"' in text


def test_counts_do_not_fall_when_the_history_cannot_be_read(
    manager: Manager, stub: Stub, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.ensure(stub())
    before = {name: value for name, value in samples().items() if "server_starts" in name}
    assert before

    def fail(_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(history, "count", fail)
    assert before.items() <= samples().items()


def test_without_prometheus_client_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(SettingError, match="prometheus_client"):
        emberd.PrometheusCollector()


def test_registering_reads_and_writes_nothing(tmp_path: Path) -> None:
    registry = prometheus_client.CollectorRegistry(auto_describe=True)
    registry.register(emberd.PrometheusCollector(tmp_path / "nowhere"))
    prometheus_client.generate_latest(registry)
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- documentation


def test_the_transcript_shows_the_panels_and_legends_of_the_dashboard() -> None:
    folder = ROOT / "docs" / "monitoring"
    dashboard = json.loads((folder / "grafana-dashboard.json").read_text(encoding="utf-8"))
    content = (folder / "transcript.txt").read_text(encoding="utf-8").partition("\n\n")[2]
    lines = [line for line in content.splitlines() if not line.startswith("firing: ")]
    expected = [
        re.sub(r"\\{\\{\w+\\}\\}", ".*", re.escape(f"{panel['title']:30} {each['legendFormat']}"))
        for panel in dashboard["panels"]
        for each in panel.get("targets", ())
    ]
    patterns = [re.compile(rf"{each} +[\d.e+-]+") for each in expected]
    assert [line for line in lines if not any(each.fullmatch(line) for each in patterns)] == []
    assert [each.pattern for each in patterns if not any(map(each.fullmatch, lines))] == []

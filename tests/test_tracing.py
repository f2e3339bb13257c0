"""Spans of OpenTelemetry: names, parents, errors, and nothing of a text."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, SamplingResult

import emberd
import langchain_emberd
from command import run_program
from emberd import tracing
from emberd.errors import RequestError, TextTooLongError
from emberd.gateway.api import Gateway
from emberd.gateway.served_models import ServedModels
from emberd.serving.connections import Connections
from fake_reranker import MODEL as RERANKER
from fake_reranker import FakeReranker
from fake_server import QWEN, FakeServer
from http_server import reply
from llama_index.embeddings.emberd import EmberdEmbedding
from managed import environment

SECRET = "a text that no one may read in a trace"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """All spans that end; without a provider for the whole process, which cannot be undone."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return exporter


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer(model=QWEN, dimensions=1024) as running:
        yield running


def only(spans: InMemorySpanExporter) -> ReadableSpan:
    (span,) = spans.get_finished_spans()
    assert SECRET not in span.to_json()
    return span


def attributes(span: ReadableSpan) -> dict[str, Any]:
    assert span.attributes is not None
    return dict(span.attributes)


def test_a_call_is_a_span_with_the_names_of_the_conventions(
    server: FakeServer, spans: InMemorySpanExporter
) -> None:
    emberd.Embedder(QWEN, base_url=server.url, dimensions=64).embed_query(SECRET)
    span = only(spans)
    assert span.name == f"embeddings {QWEN}"
    assert span.kind is trace.SpanKind.CLIENT
    found = attributes(span)
    tokens = found.pop("gen_ai.usage.input_tokens")
    assert tokens > len(SECRET)
    assert found == {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "emberd",
        "gen_ai.request.model": QWEN,
        "gen_ai.response.model": QWEN,
        "gen_ai.embeddings.dimension.count": 64,
        "server.address": "127.0.0.1",
        "server.port": int(server.url.rpartition(":")[2]),
        "emberd.texts": 1,
        "emberd.texts.cached": 0,
    }
    assert span.status.status_code is trace.StatusCode.UNSET


def test_an_asynchronous_call_is_one_too(server: FakeServer, spans: InMemorySpanExporter) -> None:
    asyncio.run(emberd.Embedder(QWEN, base_url=server.url).aembed_documents(["one", "two"]))
    assert attributes(only(spans))["emberd.texts"] == 2


def test_each_window_of_a_stream_is_a_span(server: FakeServer, spans: InMemorySpanExporter) -> None:
    embedder = emberd.Embedder(QWEN, base_url=server.url)
    list(embedder.iter_documents(str(number) for number in range(3000)))
    found = [attributes(each)["emberd.texts"] for each in spans.get_finished_spans()]
    assert len(found) > 1
    assert sum(found) == 3000


def test_a_call_is_a_child_of_the_callers_span(
    server: FakeServer, spans: InMemorySpanExporter
) -> None:
    embedder = emberd.Embedder(QWEN, base_url=server.url)
    with trace.get_tracer("test").start_as_current_span("request") as outer:
        embedder.embed_query("sync")
        asyncio.run(embedder.aembed_query("async"))
    one, other, _ = spans.get_finished_spans()
    for each in (one, other):
        assert each.parent is not None
        assert each.parent.span_id == outer.get_span_context().span_id


def test_what_begins_within_a_span_that_is_not_sampled_is_not_sampled_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(_ByName()))
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    span = tracing.begin("embeddings", QWEN, {})
    with tracing.current(span), trace.get_tracer("http").start_as_current_span("POST"):
        pass
    tracing.end(span, {}, "http://127.0.0.1:9", "Error")
    assert exporter.get_finished_spans() == ()


class _ByName(Sampler):
    """Samples no root span of emberd, and all others."""

    def should_sample(
        self, parent_context: Any, trace_id: int, name: str, *_: Any, **__: Any
    ) -> SamplingResult:
        drops = name.startswith("embeddings")
        return SamplingResult(Decision.DROP if drops else Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        return "by name"


def test_an_error_is_its_type_without_the_message_which_may_quote_a_text(
    server: FakeServer, spans: InMemorySpanExporter
) -> None:
    embedder = emberd.Embedder(QWEN, base_url=server.url)
    with pytest.raises(TextTooLongError):
        embedder.embed_query(f"{SECRET} " * 500)
    span = only(spans)
    assert attributes(span)["error.type"] == "TextTooLongError"
    assert span.status.status_code is trace.StatusCode.ERROR
    spans.clear()
    server.first.append(reply(400, {"message": SECRET}))
    with pytest.raises(RequestError):
        asyncio.run(embedder.aembed_query(SECRET))
    assert attributes(only(spans))["error.type"] == "RejectedError"


def test_a_call_that_is_cancelled_is_an_error_too(
    server: FakeServer, spans: InMemorySpanExporter
) -> None:
    embedder = emberd.Embedder(QWEN, base_url=server.url)
    embedder.ensure()
    server.latency_s = 5.0

    async def cancelled() -> None:
        async with asyncio.timeout(0.2):
            await embedder.aembed_query("slow")

    with pytest.raises(TimeoutError):
        asyncio.run(cancelled())
    assert attributes(only(spans))["error.type"] == "cancelled"


def test_what_a_cache_answers_names_no_server(
    server: FakeServer, spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    embedder = emberd.Embedder(QWEN, base_url=server.url, cache=f"sqlite:///{tmp_path}/c.db")
    embedder.embed_query("again")
    spans.clear()
    embedder.embed_query("again")
    found = attributes(only(spans))
    assert found["emberd.texts.cached"] == 1
    assert found["gen_ai.usage.input_tokens"] == 0
    assert "server.address" not in found


def test_reranking_is_an_operation_of_its_own(spans: InMemorySpanExporter) -> None:
    with FakeReranker() as running:
        reranker = emberd.Reranker(RERANKER, base_url=running.url)
        reranker.rerank(SECRET, [SECRET, "two"])
    span = only(spans)
    assert span.name == f"rerank {reranker.settings.model}"
    assert attributes(span)["gen_ai.operation.name"] == "rerank"
    assert "gen_ai.embeddings.dimension.count" not in attributes(span)


def test_both_frameworks_have_spans(server: FakeServer, spans: InMemorySpanExporter) -> None:
    langchain_emberd.EmberdEmbeddings(model=QWEN, base_url=server.url).embed_query("one")
    EmberdEmbedding(model_name=QWEN, base_url=server.url).get_query_embedding("two")
    assert [each.name for each in spans.get_finished_spans()] == [f"embeddings {QWEN}"] * 2


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank"])
async def test_the_trace_of_a_request_to_the_gateway_continues(
    server: FakeServer, spans: InMemorySpanExporter, path: str
) -> None:
    with FakeReranker() as scores:
        models = ServedModels(
            [
                emberd.Embedder(QWEN, base_url=server.url),
                emberd.Reranker(RERANKER, base_url=scores.url),
            ]
        )
        bodies: dict[str, dict[str, Any]] = {
            "/v1/embeddings": {"model": QWEN, "input": SECRET},
            "/v1/rerank": {"model": RERANKER, "query": "q", "documents": [SECRET]},
        }
        headers = {
            "authorization": "Bearer key",
            "traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01",
        }
        app: Any = Gateway(models, Connections()).app(["key"], [])
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            assert (await client.post(path, json=bodies[path], headers=headers)).status_code == 200
            headers.pop("traceparent")
            assert (await client.post(path, json=bodies[path], headers=headers)).status_code == 200
        await models.close()
    traced, own = spans.get_finished_spans()
    assert traced.context is not None
    assert own.context is not None
    assert traced.parent is not None
    assert f"{traced.context.trace_id:032x}" == TRACE_ID
    assert f"{traced.parent.span_id:016x}" == PARENT_ID
    assert f"{own.context.trace_id:032x}" != TRACE_ID


_PROGRAM = """
import sys
import emberd
emberd.Embedder("Qwen/Qwen3-Embedding-0.6B", base_url=sys.argv[1]).embed_query("one")
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""


def test_emberd_does_not_import_opentelemetry_by_itself(server: FakeServer) -> None:
    done = run_program("-c", _PROGRAM, server.url, environment=environment(), with_frameworks=False)
    assert (done.code, done.out.strip()) == (0, "[]"), done.err


def test_a_module_that_is_still_being_imported_is_not_used(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", type(sys)("opentelemetry.trace"))
    emberd.Embedder(QWEN, base_url=server.url).embed_query("one")

"""Requests for vectors: what the server is sent, what the client gets, and errors."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import waiting
from emberd.catalog import EMBED, RERANK
from emberd.gateway import access
from emberd.gateway.metrics import GatewayMetrics
from emberd.prompts import TASKS
from fake_server import END_OF_TEXT, QWEN, FakeServer, vector_of_ids
from gateway.conftest import Faked
from gateways import serving

WEB = "Given a web search query, retrieve relevant passages that answer the query"
TEXT = "two\nlines,  spaces and {text}: über 数字"
SHORT = "qwen3-embedding-0.6b"


def instructed(task: str, text: str = TEXT) -> str:
    return f"Instruct: {task}\nQuery:{text}"


@pytest.mark.parametrize(
    ("model", "fields", "sent"),
    [
        (SHORT, {}, TEXT),
        (QWEN, {}, TEXT),
        (f"{SHORT}:document", {}, TEXT),
        (f"{SHORT}:query", {}, instructed(WEB)),
        (f"{QWEN}:query", {}, instructed(WEB)),
        (f"{SHORT}@64:query", {}, instructed(WEB)),
        (f"{SHORT}:query?task=code", {}, instructed(TASKS["code"])),
        (f"{SHORT}:query?task=Find the law", {}, instructed("Find the law")),
        (f"{SHORT}:document?task=code", {}, TEXT),
        (f"{SHORT}?task=similarity", {}, instructed(TASKS["similarity"])),
        (SHORT, {"input_type": "query"}, instructed(WEB)),
        (SHORT, {"input_type": "search_query"}, instructed(WEB)),
        (SHORT, {"input_type": "passage"}, TEXT),
        (SHORT, {"input_type": "search_document"}, TEXT),
        (SHORT, {"input_type": "clustering"}, instructed(TASKS["clustering"])),
        (SHORT, {"task": "retrieval.query"}, instructed(WEB)),
        (SHORT, {"task": "text-matching"}, instructed(TASKS["similarity"])),
        (SHORT, {"input_type": "query", "task": "code"}, instructed(TASKS["code"])),
        (f"{SHORT}:query", {"task": "title: {text}"}, f"title: {TEXT}"),
    ],
)
def test_the_server_gets_the_template_of_the_role_to_the_byte(
    faked: Faked, model: str, fields: dict[str, Any], sent: str
) -> None:
    before = len(faked.inputs())
    reply = faked.running.post(model=model, input=TEXT, **fields)
    assert reply.status_code == 200, reply.text
    assert faked.inputs()[before:] == [sent]


def expected(text: str, dimensions: int = 1024) -> Any:
    row = vector_of_ids([*text.encode(), END_OF_TEXT], 1024)[:dimensions]
    return row / np.linalg.norm(row)


@pytest.mark.parametrize("dimensions", [None, 64])
@pytest.mark.parametrize("encoding", [None, "float", "base64"])
def test_vectors_come_in_both_encodings_in_order_with_usage(
    faked: Faked, encoding: str | None, dimensions: int | None
) -> None:
    texts = ["one", "two", "three"]
    fields: dict[str, Any] = {"encoding_format": encoding} if encoding else {}
    fields |= {"dimensions": dimensions} if dimensions else {}
    reply = faked.running.post(model=SHORT, input=texts, **fields).json()
    assert (reply["object"], reply["model"]) == ("list", SHORT)
    assert [item["index"] for item in reply["data"]] == [0, 1, 2]
    for text, item in zip(texts, reply["data"], strict=True):
        got = item["embedding"]
        row = np.frombuffer(base64.b64decode(got), "<f4") if encoding == "base64" else got
        assert np.allclose(row, expected(text, dimensions or 1024), atol=1e-6)
    tokens = sum(len(text) + 1 for text in texts)
    assert reply["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_name_and_dimensions_of_the_name_are_those_of_the_field(faked: Faked) -> None:
    by_name = faked.running.post(model=f"{SHORT}@64", input="a").json()["data"]
    by_field = faked.running.post(model=SHORT, input="a", dimensions=64).json()["data"]
    assert by_name == by_field
    assert len(by_name[0]["embedding"]) == 64


def test_a_body_that_arrives_in_many_pieces_is_read_whole(faked: Faked) -> None:
    texts = [f"piece {n} {'x' * 500}" for n in range(200)]
    body = json.dumps({"model": SHORT, "input": texts}).encode()

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(body), 5000):
            time.sleep(0.01)
            yield body[start : start + 5000]

    with faked.running.client() as client:
        headers = {"content-type": "application/json"}
        reply = client.post("/v1/embeddings", content=pieces(), headers=headers)
    assert reply.status_code == 200, reply.text
    assert reply.json()["usage"]["total_tokens"] == sum(len(text) + 1 for text in texts)


def test_a_text_that_is_too_long_is_cut_on_request(faked: Faked) -> None:
    reply = faked.running.post(model=SHORT, input="x" * 2000, truncate=True)
    assert reply.status_code == 200, reply.text
    assert reply.json()["usage"]["total_tokens"] == 999


def test_a_blank_text_is_embedded_as_by_the_classes(faked: Faked) -> None:
    reply = faked.running.post(model=SHORT, input=[" ", "a", ""])
    assert reply.status_code == 200, reply.text
    assert len(reply.json()["data"]) == 3


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"input": "a"}, 400, "/v1/models"),
        ({"model": 3, "input": "a"}, 400, "/v1/models"),
        ({"model": "gpt-5", "input": "a"}, 404, QWEN),
        ({"model": f"{SHORT}-x", "input": "a"}, 404, QWEN),
        ({"model": "test/reranker", "input": "a"}, 400, "/v1/rerank"),
        ({"model": SHORT}, 400, "input"),
        ({"model": SHORT, "input": []}, 400, "input"),
        ({"model": SHORT, "input": {"text": "a"}}, 400, "input"),
        ({"model": SHORT, "input": [1, 2, 3]}, 400, "Token ids"),
        ({"model": SHORT, "input": [[1, 2], [3]]}, 400, "Token ids"),
        ({"model": SHORT, "input": ["a", 3]}, 400, "strings"),
        ({"model": SHORT, "input": ["a", None]}, 400, "strings"),
        ({"model": SHORT, "input": ["a"] * 2049}, 400, "2048"),
        ({"model": SHORT, "input": "a", "encoding_format": "hex"}, 400, "hex"),
        ({"model": SHORT, "input": "a", "output_dtype": "int8"}, 400, "int8"),
        ({"model": SHORT, "input": "a", "dimensions": 4096}, 400, "4096"),
        ({"model": SHORT, "input": "a", "dimensions": -1}, 400, "-1"),
        ({"model": f"{SHORT}:query", "input": "a", "input_type": "document"}, 400, "role"),
        ({"model": f"{SHORT}@8", "input": "a", "dimensions": 16}, 400, "dimensions"),
        ({"model": SHORT, "input": "a", "task": "code"}, 400, ":query"),
        ({"model": f"{SHORT}:query", "input": "a", "task": "clustering"}, 400, "Omit the role"),
        ({"model": f"{SHORT}:query", "input": "a", "task": "nonsense"}, 400, "nonsense"),
        ({"model": f"{SHORT}:query", "input": "a", "task": "Instruct: x"}, 400, "Instruct"),
        ({"model": SHORT, "input": "x" * 2000}, 400, "2001"),
        ({"model": SHORT, "input": "a", "truncate": "START"}, 400, "START"),
    ],
)
def test_a_wrong_request_gets_an_error_of_openai(
    faked: Faked, body: dict[str, Any], status: int, said: str
) -> None:
    reply = faked.running.post(**body)
    error = reply.json()["error"]
    assert (reply.status_code, set(error)) == (status, {"message", "type", "param", "code"})
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"
    assert (error["code"] == "model_not_found") == (status == 404)
    assert (error["code"] == "context_length_exceeded") == (said == "2001")


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"", "application/json", 400),
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"model": "a"}', "text/plain", 400),
        (rb'{"model": "qwen3-embedding-0.6b", "input": "\ud800"}', "application/json", 400),
        (b"\xff", "application/json; charset=utf-8", 400),
        (b" " * (16 * 1024 * 1024 + 1), "application/json", 413),
    ],
)
def test_a_body_that_is_no_request_is_refused(
    faked: Faked, content: bytes, kind: str, status: int
) -> None:
    with faked.running.client() as client:
        reply = client.post("/v1/embeddings", content=content, headers={"content-type": kind})
    assert reply.status_code == status
    assert reply.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/embeddings", 405),
        ("GET", "/nothing", 404),
        ("POST", "/v1/chat/completions", 404),
        ("OPTIONS", "/v1/embeddings", 405),
    ],
)
def test_other_routes_get_an_error_of_openai_too(
    faked: Faked, method: str, path: str, status: int
) -> None:
    with faked.running.client() as client:
        reply = client.request(method, path)
    assert reply.status_code == status
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    assert "access-control-allow-origin" not in reply.headers


def test_models_lists_a_name_for_each_role(faked: Faked) -> None:
    with faked.running.client() as client:
        listed = client.get("/v1/models").json()["data"]
        names = [entry["id"] for entry in listed]
        assert names == [SHORT, f"{SHORT}:query", f"{SHORT}:document", "reranker"]
        assert [entry["root"] for entry in listed] == [QWEN] * 3 + ["test/reranker"]
        assert client.get(f"/v1/models/{QWEN}:query").json()["root"] == QWEN
        assert client.get("/v1/models/gpt-5").status_code == 404
        assert client.get(f"/v1/models/{QWEN}{':query' * 5000}").status_code == 400


@pytest.mark.parametrize(
    ("first", "status", "code"),
    [
        ([429] * 50, 503, "server_unavailable"),
        ([401], 502, None),
        ([403], 502, None),
    ],
)
def test_a_failing_server_is_not_blamed_on_the_client(
    tmp_path: Path, first: list[int], status: int, code: str | None
) -> None:
    with FakeServer(model=QWEN, dimensions=1024) as server:
        variables = {"EMBERD_BASE_URL": server.url, "EMBERD_TIMEOUT": "1"}
        with serving(tmp_path / "home", QWEN, environment=variables) as running:
            assert running.post(model=SHORT, input="warm").status_code == 200
            server.answer_first(*first)
            reply = running.post(model=SHORT, input="secret text")
            error = reply.json()["error"]
            assert (reply.status_code, error["type"]) == (status, "api_error")
            assert code in (None, error["code"])
            assert ("retry-after" in reply.headers) == (status == 503)
            assert "secret text" not in running.log.read_text()


def test_concurrent_single_texts_share_requests_to_the_server(tmp_path: Path) -> None:
    with FakeServer(model=QWEN, dimensions=1024, latency_s=0.3) as server:
        with serving(tmp_path / "home", QWEN, environment={"EMBERD_BASE_URL": server.url}) as own:
            own.post(model=SHORT, input="warm")
            before, texts = len(server.embedded), [f"text {n}" for n in range(64)]
            with own.client() as client, ThreadPoolExecutor(64) as pool:
                replies = list(
                    pool.map(
                        lambda text: client.post(
                            "/v1/embeddings", json={"model": SHORT, "input": text}
                        ),
                        texts,
                    )
                )
            requests = server.embedded[before:]
            assert sorted(text for request in requests for text in request) == sorted(texts)
            assert len(requests) < 40
    read = 0
    for text, reply in zip(texts, replies, strict=True):
        assert np.allclose(reply.json()["data"][0]["embedding"], expected(text), atol=1e-6)
        read += reply.json()["usage"]["prompt_tokens"]
    assert read == sum(len(text) + 1 for text in texts)


def test_a_cached_text_is_not_sent_again_and_counts_no_token(tmp_path: Path) -> None:
    with FakeServer(model=QWEN, dimensions=1024) as server:
        variables = {"EMBERD_BASE_URL": server.url}
        cache = f"sqlite:///{tmp_path}/cache.db"
        with serving(tmp_path / "home", QWEN, "--cache", cache, environment=variables) as running:
            first = running.post(model=SHORT, input=["a", "b"]).json()
            before = len(server.embedded)
            again = running.post(model=f"{SHORT}@64", input=["a", "b", "c"]).json()
            assert [t for sent in server.embedded[before:] for t in sent] == ["c"]
    assert (first["usage"]["total_tokens"], again["usage"]["total_tokens"]) == (4, 2)
    assert np.allclose(again["data"][0]["embedding"], expected("a", 64), atol=1e-6)


def test_metrics_show_each_failure_with_0_before_the_first_one() -> None:
    """Prometheus takes a count that it first sees with the value 1 for no increase."""
    metrics = GatewayMetrics({"a/model": EMBED, "a/reranker": RERANK})
    samples = [each for family in metrics._registry.collect() for each in family.samples]
    shown = {(each.name, *each.labels.values()): each.value for each in samples}
    for route, model in (("embeddings", "a/model"), ("rerank", "a/reranker")):
        for status in ("200", "400", "500", "502", "503", "504"):
            assert shown["emberd_gateway_requests_total", route, model, status] == 0
        assert shown["emberd_gateway_requests_total", route, "", "404"] == 0
        assert shown["emberd_gateway_request_seconds_count", route] == 0
        assert shown["emberd_gateway_tokens_total", model] == 0
    assert shown["emberd_gateway_texts_total", "a/model", "query"] == 0
    assert shown["emberd_gateway_texts_total", "a/reranker", "pair"] == 0
    assert {each.labels["reason"] for each in samples if each.name.endswith("refused_total")} == {
        *(each.reason for each in vars(access).values() if isinstance(each, access._Refusal))
    }


def test_metrics_show_the_calls_of_served_models_before_the_first_one(tmp_path: Path) -> None:
    with serving(tmp_path / "home", QWEN) as own:
        labels = f'model="{QWEN}",outcome="ServerUnavailableError",task="embed"'
        assert own.metrics()[f"emberd_client_calls_total{{{labels}}}"] == 0


def test_metrics_count_requests_texts_and_tokens(faked: Faked) -> None:
    before = faked.running.metrics()
    assert faked.running.post(model=f"{SHORT}:query", input=["a", "bc"]).status_code == 200
    faked.running.post(model="gpt-5", input="a")
    after = faked.running.metrics()

    def grown(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    texts = f'emberd_gateway_texts_total{{model="{QWEN}",role="query"}}'
    tokens = f'emberd_gateway_tokens_total{{model="{QWEN}"}}'
    answered = f'emberd_gateway_requests_total{{model="{QWEN}",route="embeddings",status="200"}}'
    unknown = 'emberd_gateway_requests_total{model="",route="embeddings",status="404"}'
    assert grown(texts) == 2
    assert grown(tokens) == sum(len(instructed(WEB, text)) + 1 for text in ("a", "bc"))
    assert (grown(answered), grown(unknown)) == (1, 1)
    assert after["emberd_gateway_requests_in_flight"] == 0
    assert after["emberd_gateway_reserved_bytes"] == 0


def test_a_client_that_disconnects_ends_its_request(tmp_path: Path) -> None:
    with FakeServer(model=QWEN, dimensions=1024, slow="SLOW") as server:
        with serving(tmp_path / "home", QWEN, environment={"EMBERD_BASE_URL": server.url}) as own:
            own.post(model=SHORT, input="warm")
            with own.client() as client, pytest.raises(httpx.ReadTimeout):
                client.post("/v1/embeddings", json={"model": SHORT, "input": "SLOW"}, timeout=0.5)
            name = (
                f'emberd_gateway_requests_total{{model="{QWEN}",route="embeddings",status="499"}}'
            )
            waiting.until(lambda: own.metrics().get(name) == 1)
            assert own.metrics()["emberd_gateway_requests_in_flight"] == 0
            assert json.loads(own.post(model=SHORT, input="after").content)["data"]

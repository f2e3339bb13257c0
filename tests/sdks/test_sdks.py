"""Each client gets vectors through the gateway, and its server gets the template of the role."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from agents.recipes import QWEN_TEMPLATE
from fake_reranker import MODEL as RERANKER
from gateway.conftest import Faked
from gateways import own_client
from source_tree import ROOT

SHORT: Final = "qwen3-embedding-0.6b"
PACKAGES: Final = Path(sys.prefix) / "node_modules"  # `make test-sdks` installs them
SCRIPT: Final = Path(__file__).with_name("embed.cjs")
HOOKS: Final = Path(__file__).with_name("schemathesis_hooks.py")
SCHEMA: Final = ROOT / "docs/serve.openapi.json"


def _vectors(faked: Faked, model: str, texts: list[str]) -> Any:
    """Return what a plain request gets."""
    reply = faked.running.post(model=model, input=texts)
    return np.array([each["embedding"] for each in reply.json()["data"]])


def _sent(faked: Faked, before: int) -> list[str]:
    return faked.inputs()[before:]


def test_openai_in_node(faked: Faked) -> None:
    before = len(faked.inputs())
    variables = {"URL": f"{faked.running.url}/v1", "KEY": faked.running.key, "MODEL": SHORT}
    done = subprocess.run(
        ["node", str(SCRIPT)],
        env={**os.environ, **variables, "NODE_PATH": str(PACKAGES)},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert sorted(_sent(faked, before)) == sorted(["one", "two", QWEN_TEMPLATE.format(text="why?")])
    expected = _vectors(faked, SHORT, ["one", "two"])
    assert np.allclose(found["rows"][:2], expected, atol=1e-6)
    assert found["refused"] == ["NotFoundError", 404, "model_not_found"]
    assert f"{SHORT}:query" in found["models"]
    assert found["usage"]["prompt_tokens"] > 0


def test_curl_over_tcp(faked: Faked) -> None:
    before = len(faked.inputs())
    body = json.dumps({"model": f"{SHORT}:query", "input": "from curl"})
    done = subprocess.run(
        [
            *("curl", "--silent", "--fail", f"{faked.running.url}/v1/embeddings"),
            *("--header", "@-", "--json", body),
        ],
        input=f"Authorization: Bearer {faked.running.key}".encode(),
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert len(json.loads(done.stdout)["data"]) == 1
    assert _sent(faked, before) == [QWEN_TEMPLATE.format(text="from curl")]


def test_litellm(faked: Faked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # otherwise it asks GitHub
    import litellm

    before, url, key = len(faked.inputs()), faked.running.url, faked.running.key
    common: dict[str, Any] = {"api_base": f"{url}/v1", "api_key": key}
    query = litellm.embedding(model=f"openai/{SHORT}:query", input=["question"], **common)
    documents = litellm.embedding(model=f"openai/{SHORT}", input=["one", "two"], **common)
    assert _sent(faked, before)[0] == QWEN_TEMPLATE.format(text="question")
    assert sorted(_sent(faked, before)[1:]) == ["one", "two"]
    rows = [each["embedding"] for each in documents.data]
    assert np.allclose(rows, _vectors(faked, SHORT, ["one", "two"]), atol=1e-6)
    assert query.usage.prompt_tokens > 0
    ranked = litellm.rerank(
        model=f"cohere/{RERANKER}",
        query="question",
        documents=["a document", "another one"],
        api_base=url,
        api_key=key,
    )
    plain = faked.running.post(
        "/v1/rerank", model=RERANKER, query="question", documents=["a document", "another one"]
    )
    expected = [(each["index"], each["relevance_score"]) for each in plain.json()["results"]]
    results = ranked.results or []
    assert [(each["index"], each["relevance_score"]) for each in results] == expected


async def test_pydantic_ai(faked: Faked) -> None:
    from pydantic_ai import Embedder
    from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
    from pydantic_ai.providers.openai import OpenAIProvider

    before = len(faked.inputs())
    provider = OpenAIProvider(base_url=f"{faked.running.url}/v1", api_key=faked.running.key)

    def embedder(model: str) -> Embedder:
        return Embedder(OpenAIEmbeddingModel(model, provider=provider))

    stored = await embedder(SHORT).embed_documents(["one", "two"])
    await embedder(f"{SHORT}:query").embed_query("question")
    assert sorted(_sent(faked, before)[:2]) == ["one", "two"]
    assert _sent(faked, before)[2:] == [QWEN_TEMPLATE.format(text="question")]
    assert np.allclose(stored.embeddings, _vectors(faked, SHORT, ["one", "two"]), atol=1e-6)


def test_mem0_has_one_model_for_both_roles(faked: Faked) -> None:
    from mem0.configs.embeddings.base import BaseEmbedderConfig
    from mem0.embeddings.openai import OpenAIEmbedding

    before = len(faked.inputs())
    config = BaseEmbedderConfig(
        model=f"{SHORT}?task=similarity",
        api_key=faked.running.key,
        openai_base_url=f"{faked.running.url}/v1",
        embedding_dims=1024,
    )
    embedding = OpenAIEmbedding(config)
    embedding.embed("Ana bakes bread.", "add")
    embedding.embed("What does Ana bake?", "search")
    embedding.client.close()
    templates = {text.partition("\n")[0] for text in _sent(faked, before)}
    assert len(templates) == 1
    assert templates.pop().startswith("Instruct: ")


def test_requests_of_open_webui(faked: Faked) -> None:
    """As ``open_webui.retrieval.utils`` 0.12.4 and its class for external rerankers send them."""
    before = len(faked.inputs())
    with faked.running.tcp() as client:
        for role, texts in (("document", ["one", "two"]), ("query", ["why?"])):
            body: dict[str, Any] = {"input": texts, "model": SHORT, "input_type": role}
            reply = client.post("/v1/embeddings", json=body)
            rows = [each["embedding"] for each in reply.raise_for_status().json()["data"]]
            name = f"{SHORT}:{role}"
            assert np.allclose(rows, _vectors(faked, name, texts), atol=1e-6)
        body = {"model": RERANKER, "query": "why?", "documents": ["one", "two"], "top_n": 2}
        ranked = client.post("/v1/rerank", json=body).raise_for_status().json()
    assert sorted({*_sent(faked, before)}) == sorted(
        ["one", "two", QWEN_TEMPLATE.format(text="why?")]
    )
    assert sorted(each["index"] for each in ranked["results"]) == [0, 1]
    assert all(0 <= each["relevance_score"] <= 1 for each in ranked["results"])


def test_the_routes_do_what_their_description_says(faked: Faked, tmp_path: Path) -> None:
    """Each reply to requests that schemathesis makes of docs/serve.openapi.json fits it."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", str(SCHEMA)),
            *("--url", faked.running.url, "--max-examples", "20", "--seed", "1"),
            *("--header", f"Authorization: Bearer {faked.running.key}"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(HOOKS.parent), "SCHEMATHESIS_HOOKS": HOOKS.stem},
        capture_output=True,
        check=False,
        timeout=200,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    with own_client(faked.running.socket) as client:
        assert client.get("/ready").status_code == 200

"""``emberd serve`` in front of the real SGLang: the vectors of ``Embedder``, and its templates."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest

from agents.recipes import QWEN_TEMPLATE
from emberd import Embedder
from gateways import Running, serving
from managed import PASSAGES, QUERIES
from real.recorder import Recorder, in_front_of

_COSINE = 0.999  # of vectors in bfloat16, computed in other batches


@pytest.fixture(scope="module")
def own(embedder: Embedder, shared_home: Path, tiny: Path) -> Iterator[Running]:
    """A gateway that finds the server that the tests of this folder share."""
    variables = {"EMBERD_ENGINE": "sglang", "EMBERD_DEVICE": "cpu"}
    with serving(shared_home, str(tiny), environment=variables) as running:
        yield running


@pytest.fixture(scope="module")
def recorded(
    embedder: Embedder, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Running, Recorder]]:
    """A gateway with a recorder between it and that server."""
    home = tmp_path_factory.mktemp("recorded") / "home"
    with in_front_of(embedder.endpoint()) as recorder:
        variables = {"EMBERD_BASE_URL": recorder.base_url, "EMBERD_API_KEY": recorder.api_key}
        with serving(home, str(tiny), environment=variables) as running:
            yield running, recorder


def _vectors(running: Running, model: str, texts: list[str]) -> np.ndarray:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key=running.key) as client:
        reply = client.embeddings.create(model=model, input=texts)
    return np.array([each.embedding for each in reply.data], np.float32)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return bool((np.sum(one * other, axis=1) > _COSINE).all())


def test_the_sdk_gets_the_vectors_of_the_embedder(
    own: Running, embedder: Embedder, tiny: Path
) -> None:
    documents, queries = list(PASSAGES.values()), list(QUERIES)
    found = _vectors(own, tiny.name, documents)
    assert _same(found, embedder.embed_documents(documents))
    asked = _vectors(own, f"{tiny.name}:query", queries)
    assert _same(asked, embedder.embed_queries(queries))
    assert not _same(_vectors(own, tiny.name, queries), asked)
    short = _vectors(own, f"{tiny.name}@32", documents)
    cut = found[:, :32] / np.linalg.norm(found[:, :32], axis=1, keepdims=True)
    assert np.allclose(short, cut, atol=0.01)


def test_sglang_gets_the_template_of_the_role(recorded: tuple[Running, Recorder]) -> None:
    running, recorder = recorded
    with running.client() as client:
        [short, query, *_] = [each["id"] for each in client.get("/v1/models").json()["data"]]
    _vectors(running, short, ["warm"])
    recorder.taken()
    _vectors(running, short, ["a document"])
    _vectors(running, query, ["a query"])
    sent = [json.loads(body)["input"] for body in recorder.taken()]
    assert sent == [["a document"], [QWEN_TEMPLATE.format(text="a query")]]

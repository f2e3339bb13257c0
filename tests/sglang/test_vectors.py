"""Vectors from the real SGLang beside those of Transformers, on the same weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from emberd import Embedder
from langchain_emberd import EmberdEmbeddings
from llama_index.embeddings.emberd import EmberdEmbedding
from real import recorder
from real.engines import Refer, Vectors
from real.texts import BLANK, TEXTS

_LEAST_COSINE: Final = 0.9995
_LONGEST_TOKENS: Final = 1_900
QUERY: Final = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\n"
    "Query:{text}"
)


@pytest.fixture(scope="module")
def vectors(embedder: Embedder) -> Vectors:
    return embedder.embed_documents(TEXTS)


def test_each_of_fifty_texts_has_the_vector_of_transformers(
    vectors: Vectors, refer: Refer, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = refer(TEXTS)
    assert len(TEXTS) == 50
    assert max(len(ids) for ids in reference.ids) >= _LONGEST_TOKENS
    cosines = np.sum(vectors * reference.vectors, axis=1)
    with capsys.disabled():
        print(
            f"\ncosine to Transformers, 50 texts: least {cosines.min():.6f} "
            f"({TEXTS[int(cosines.argmin())][:30]!r}), median {np.median(cosines):.6f}"
        )
    assert cosines.min() >= _LEAST_COSINE
    # Two texts must not be alike, or a comparison of vectors would prove nothing.
    others = vectors @ vectors.T - np.eye(len(TEXTS))
    assert np.median(others) < 0.9


def test_norms_are_one_to_a_millionth(vectors: Vectors) -> None:
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    assert np.abs(norms - 1).max() < 1e-6


@pytest.mark.parametrize("dimensions", [32, 64, 128])
@pytest.mark.parametrize("by_server", [False, True])
@pytest.mark.filterwarnings("ignore:dimensions=")
def test_dimensions_are_the_head_of_the_native_vector(
    embedder: Embedder, vectors: Vectors, dimensions: int, by_server: bool
) -> None:
    cut = Embedder(
        embedder.settings.model,
        dimensions=dimensions,
        server_dimensions=by_server,
        base_url=embedder.endpoint().base_url,
        api_key=embedder.endpoint().api_key,
    )
    head = vectors[:, :dimensions]
    head = head / np.linalg.norm(head, axis=1, keepdims=True)
    # The server normalises in bfloat16 what it cuts, which moves a component by up to 2^-9.
    assert np.abs(cut.embed_documents(TEXTS) - head).max() < (5e-3 if by_server else 1e-4)


def test_a_query_is_embedded_in_the_template_of_its_own_checkpoint(
    embedder: Embedder, refer: Refer
) -> None:
    asked = ["where is my index", "如何选择合适的嵌入模型？", "two\nlines", BLANK]
    reference = refer([QUERY.replace("{text}", text) for text in asked])
    cosines = np.sum(embedder.embed_queries(asked) * reference.vectors, axis=1)
    assert cosines.min() >= _LEAST_COSINE


@pytest.fixture
def recording(embedder: Embedder) -> Iterator[recorder.Recorder]:
    with recorder.in_front_of(embedder.endpoint()) as recorded:
        yield recorded


def test_both_frameworks_send_the_same_bytes_and_get_the_same_vectors(
    recording: recorder.Recorder, tiny: Path
) -> None:
    place: dict[str, Any] = {"base_url": recording.base_url, "api_key": recording.api_key}
    # Thirteen texts: one batch in either framework, whose own batches differ in size.
    some = TEXTS[:10] + TEXTS[-5:-2]
    chain = EmberdEmbeddings(model=str(tiny), **place)
    by_chain = [*chain.embed_documents(some), chain.embed_query(some[3])]
    from_chain = recording.taken()
    index = EmberdEmbedding(model_name=str(tiny), embed_batch_size=64, **place)
    by_index = [*index.get_text_embedding_batch(some), index.get_query_embedding(some[3])]
    assert recording.taken() == from_chain != []
    assert np.abs(np.array(by_chain) - np.array(by_index)).max() < 1e-4


@pytest.mark.parametrize("role", ["query", "document"])
def test_the_server_reads_as_many_tokens_as_the_reference_tokenizer_makes(
    embedder: Embedder, recording: recorder.Recorder, tiny: Path, refer: Refer, role: str
) -> None:
    template = QUERY if role == "query" else "{text}"
    some = [text for text in TEXTS if text != BLANK]
    there = Embedder(tiny, base_url=recording.base_url, api_key=recording.api_key)
    embed = there.embed_queries if role == "query" else there.embed_documents
    there.ensure()
    of_verification = len(recording.replies)
    embed(some)
    replies = recording.replies[of_verification:]
    read = [json.loads(reply)["usage"]["prompt_tokens"] for reply in replies]
    reference = refer([template.replace("{text}", text) for text in some])
    assert sum(read) == sum(len(ids) for ids in reference.ids)


def test_an_over_long_text_is_cut_with_its_end_of_text_token_kept(
    embedder: Embedder, tiny: Path, refer: Refer
) -> None:
    endpoint = embedder.endpoint()
    cutting = Embedder(
        tiny, truncate=True, base_url=endpoint.base_url, api_key=endpoint.api_key, batch_size=1
    )
    long = " ".join(f"word{i}" for i in range(2_000))
    (vector,) = cutting.embed_documents([long])
    assert endpoint.context_tokens is not None
    (ids,) = refer([long]).ids
    assert len(ids) > endpoint.context_tokens
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)

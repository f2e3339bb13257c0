"""The rerankers of both frameworks on the real SGLang: retrieve 50, rerank to 5."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.schema import TextNode

from contract.rerankers import KINDS, aorder, order
from emberd import Reranker
from emberd.prompts import rerank_frame
from langchain_emberd import EmberdEmbeddings, EmberdReranker
from llama_index.embeddings.emberd import EmberdEmbedding
from llama_index.postprocessor.emberd import EmberdRerank
from managed import MODEL as DEMO
from real.engines import EngineSide

# Random weights may prefer the wrong document.
pytestmark = pytest.mark.filterwarnings("ignore:.*scores may mean nothing")

_APART: Final = 0.05  # of bfloat16, which depends on the batch
_QUERY: Final = "why does the fox jump"
_WORDS: Final = (
    "fox",
    "dog",
    "query",
    "passage",
    "answer",
    "vector",
    "text",
    "lazy",
    "jump",
    "sum",
)


def _texts(count: int) -> list[str]:
    dice = random.Random(20_261_129)
    return [f"{n} " + " ".join(dice.choices(_WORDS, k=dice.randint(3, 60))) for n in range(count)]


@pytest.fixture
def small(small_reranker: Path) -> Path:
    """A tiny reranker with random weights."""
    return small_reranker


@pytest.fixture
def reranker(
    start_reranker: Callable[[str], Reranker], reranker_home: Path, monkeypatch: pytest.MonkeyPatch
) -> Reranker:
    """A reranker of ``small``, whose server all others find."""
    monkeypatch.setenv("EMBERD_HOME", str(reranker_home / "sglang"))
    return start_reranker("sglang")


@pytest.fixture
def settings(small: Path) -> dict[str, Any]:
    return {"model": str(small), "engine": "sglang", "device": "cpu"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
async def test_scores_are_those_of_transformers_and_the_server_is_the_running_one(
    kind: Any,
    reranker: Reranker,
    settings: dict[str, Any],
    small: Path,
    transformers_side: EngineSide,
) -> None:
    texts = _texts(50)
    prompts = [text.join(rerank_frame(_QUERY)) for text in texts]
    found = transformers_side.scores(small, prompts, "bfloat16")
    reference = dict(zip(texts, found.vectors.tolist(), strict=True))
    made = kind(**settings)
    unpickled = pickle.loads(pickle.dumps(made))
    for ranking in (
        order(made, _QUERY, texts),
        await aorder(made, _QUERY, texts),
        order(unpickled, _QUERY, texts),
    ):
        scores = dict(ranking)
        apart = [abs(scores[text] - reference[text]) for text in texts]
        assert max(apart) <= _APART
        assert [score for _, score in ranking] == sorted(scores.values(), reverse=True)
    assert np.ptp(list(reference.values())) > 2 * _APART
    assert made.endpoint().url == unpickled.endpoint().url == reranker.endpoint().url


async def test_langchain_retrieves_fifty_and_reranks_to_five(
    reranker: Reranker, settings: dict[str, Any]
) -> None:
    store = InMemoryVectorStore(EmberdEmbeddings(model=DEMO))
    store.add_texts(_texts(60))
    retriever = ContextualCompressionRetriever(
        base_retriever=store.as_retriever(search_kwargs={"k": 50}),
        base_compressor=EmberdReranker(**settings, top_n=5),
    )
    for found in (retriever.invoke(_QUERY), await retriever.ainvoke(_QUERY)):
        retrieved = [each.page_content for each in store.similarity_search(_QUERY, k=50)]
        scores = [each.metadata["relevance_score"] for each in found]
        assert {each.page_content for each in found} <= set(retrieved)
        _check_best(reranker, retrieved, scores)


async def test_llama_index_retrieves_fifty_and_reranks_to_five(
    reranker: Reranker, settings: dict[str, Any]
) -> None:
    index = VectorStoreIndex(
        [TextNode(text=text) for text in _texts(60)], embed_model=EmberdEmbedding(model_name=DEMO)
    )
    engine = index.as_query_engine(
        llm=MockLLM(),
        similarity_top_k=50,
        node_postprocessors=[EmberdRerank(**settings, top_n=5)],
    )
    for answer in (engine.query(_QUERY), await engine.aquery(_QUERY)):
        retrieved = [hit.text for hit in index.as_retriever(similarity_top_k=50).retrieve(_QUERY)]
        scores = [hit.get_score(raise_error=True) for hit in answer.source_nodes]
        assert {hit.text for hit in answer.source_nodes} <= set(retrieved)
        _check_best(reranker, retrieved, scores)


def _check_best(reranker: Reranker, texts: list[str], scores: list[float]) -> None:
    """Check that these are the highest five scores of the texts."""
    best = np.sort(reranker.scores(_QUERY, texts))[::-1][:5]
    assert len(texts) == 50
    assert scores == sorted(scores, reverse=True)
    np.testing.assert_allclose(scores, best, atol=_APART)

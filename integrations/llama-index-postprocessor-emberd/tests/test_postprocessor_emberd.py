"""What LlamaIndex asks of every integration; the rest is in the tests of the repository."""

from __future__ import annotations

from llama_index.core.postprocessor.types import BaseNodePostprocessor

from llama_index.postprocessor.emberd import EmberdRerank


def test_class() -> None:
    made = EmberdRerank(model="Qwen/Qwen3-Reranker-0.6B", top_n=5, keep_retrieval_score=True)
    assert BaseNodePostprocessor.__name__ in [kind.__name__ for kind in EmberdRerank.__mro__]
    assert (made.model, made.top_n, made.keep_retrieval_score) == (
        "Qwen/Qwen3-Reranker-0.6B",
        5,
        True,
    )

"""A common interface to the rerankers of both frameworks, so that one test covers both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from fake_reranker import FakeReranker, score_of, tokenize
from langchain_emberd import EmberdReranker
from llama_index.postprocessor.emberd import EmberdRerank

Ranking = list[tuple[str, Any]]


KINDS: Final[tuple[type[EmberdReranker], type[EmberdRerank]]] = (EmberdReranker, EmberdRerank)


def order(made: Any, query: str, texts: Sequence[str]) -> Ranking:
    """Return texts and scores in the order of the class."""
    if isinstance(made, EmberdReranker):
        return _of_documents(made.compress_documents(_documents(texts), query))
    return _of_nodes(made.postprocess_nodes(_nodes(texts), query_str=query))


async def aorder(made: Any, query: str, texts: Sequence[str]) -> Ranking:
    """Return the same by the asynchronous method."""
    if isinstance(made, EmberdReranker):
        return _of_documents(await made.acompress_documents(_documents(texts), query))
    return _of_nodes(await made.apostprocess_nodes(_nodes(texts), query_str=query))


def scores_of(server: FakeReranker) -> dict[str, float]:
    """Return the score of each prompt that the server was sent, as float32."""
    prompts = {prompt for request in server.scored for prompt in request}
    return {
        prompt: float(np.float32(score_of([*tokenize(prompt), server.weights])))
        for prompt in prompts
    }


def _documents(texts: Sequence[str]) -> list[Document]:
    return [Document(text) for text in texts]


def _nodes(texts: Sequence[str]) -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=text)) for text in texts]


def _of_documents(documents: Sequence[Document]) -> Ranking:
    return [(each.page_content, each.metadata["relevance_score"]) for each in documents]


def _of_nodes(nodes: Sequence[NodeWithScore]) -> Ranking:
    return [(each.text, each.score) for each in nodes]

"""The recipe for pydantic-ai."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import emberd
from agents.recipes import BREAD, QWEN_TEMPLATE, TWO_LINES, Recipe, Sent
from managed import PASSAGES, QUERIES, same


@pytest.fixture
def embedder(recipe: Recipe) -> Callable[[], Any]:
    """Return pydantic-ai's own embedder over the recipe's model."""

    def make() -> Any:
        from pydantic_ai import Embedder

        return Embedder(recipe("pydantic-ai").EmberdModel(emberd.Embedder()))

    return make


async def test_the_recipe_finds_the_passages(embedder: Callable[[], Any]) -> None:
    made = embedder()
    documents = await made.embed_documents(list(PASSAGES.values()))
    queries = await made.embed_query(list(QUERIES))
    scores = np.array(queries.embeddings) @ np.array(documents.embeddings).T
    found = [list(PASSAGES)[best] for best in scores.argmax(axis=1)]
    assert found == list(QUERIES.values())


async def test_each_text_gets_the_template_of_its_role(
    embedder: Callable[[], Any], sent_to_demo: Sent
) -> None:
    made = embedder()
    await made.embed_documents([BREAD])
    await made.embed_query(TWO_LINES)
    assert sent_to_demo()[-2:] == [f"passage: {BREAD}", f"query: {TWO_LINES}"]


async def test_qwen_gets_its_templates_to_the_byte(
    embedder: Callable[[], Any], sent_to_qwen: Sent
) -> None:
    made = embedder()
    await made.embed_documents([BREAD])
    await made.embed_query(TWO_LINES)
    assert sent_to_qwen()[-2:] == [BREAD, QWEN_TEMPLATE.replace("{text}", TWO_LINES)]


async def test_a_result_names_the_model_and_has_emberds_vectors(
    embedder: Callable[[], Any],
) -> None:
    result = await embedder().embed_query(TWO_LINES)
    assert (result.model_name, result.provider_name) == ("emberd/demo", "emberd")
    assert result.input_type == "query"
    assert same(result[TWO_LINES], emberd.Embedder().embed_query(TWO_LINES))


async def test_settings_of_pydantic_ai_are_refused_and_not_ignored(
    embedder: Callable[[], Any],
) -> None:
    with pytest.raises(ValueError, match="dimensions"):
        await embedder().embed_query(TWO_LINES, settings={"dimensions": 64})


def test_it_works_without_a_loop_of_ones_own(embedder: Callable[[], Any]) -> None:
    assert len(embedder().embed_query_sync(TWO_LINES)[0]) == 384

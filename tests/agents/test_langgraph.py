"""The recipe for LangGraph's store."""

from __future__ import annotations

from typing import Any

import pytest

from agents.recipes import BOATS, BREAD, QUESTION, QWEN_TEMPLATE, Recipe, Sent


def test_the_recipe_finds_the_memory(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    recipe("LangGraph")
    assert capsys.readouterr().out == f"{BREAD}\n"


def test_a_put_sends_documents_and_a_search_sends_a_query(
    recipe: Recipe, sent_to_demo: Sent
) -> None:
    recipe("LangGraph")
    sent = sent_to_demo()
    assert sent[-3:] == [f"passage: {BREAD}", f"passage: {BOATS}", f"query: {QUESTION}"]


def test_qwen_gets_its_templates_to_the_byte(recipe: Recipe, sent_to_qwen: Sent) -> None:
    recipe("LangGraph")
    assert sent_to_qwen()[-3:] == [BREAD, BOATS, QWEN_TEMPLATE.replace("{text}", QUESTION)]


async def test_aput_and_asearch_do_the_same(recipe: Recipe, sent_to_demo: Sent) -> None:
    store: Any = recipe("LangGraph").store
    sent_to_demo()
    await store.aput(("bo",), "cat", {"text": "Bo keeps a cat."})
    await store.aput(("bo",), "tax", {"text": "Bo pays taxes."})
    (found,) = await store.asearch(("bo",), query="Which animal is at home with him?", limit=1)
    assert found.key == "cat"
    expected = ["passage: Bo keeps a cat.", "passage: Bo pays taxes."]
    assert sent_to_demo() == [*expected, "query: Which animal is at home with him?"]


def test_without_fields_the_whole_value_is_embedded_as_json(
    recipe: Recipe, sent_to_demo: Sent
) -> None:
    made = recipe("LangGraph")
    sent_to_demo()
    store = made.InMemoryStore(index={"embed": made.embeddings, "dims": made.dimensions})
    store.put(("ana",), "baking", {"text": BREAD})
    assert sent_to_demo() == [f'passage: {{"text": "{BREAD}"}}']


def test_a_bare_function_would_embed_queries_as_documents(
    recipe: Recipe, sent_to_demo: Sent
) -> None:
    made = recipe("LangGraph")
    sent_to_demo()
    function = made.embeddings.embed_documents
    store = made.InMemoryStore(index={"embed": function, "dims": made.dimensions})
    store.search(("ana",), query=QUESTION)
    assert sent_to_demo() == [f"passage: {QUESTION}"]

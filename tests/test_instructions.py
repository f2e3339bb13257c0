from __future__ import annotations

import pytest

from emberd.catalog import Model, lookup
from emberd.errors import InstructionError
from emberd.instructions import TASKS, Role, apply, template

QWEN = lookup("Qwen/Qwen3-Embedding-4B")
DEMO = lookup("emberd/demo")
UNKNOWN = Model("some/model")
DEFAULT_TASK = "Given a web search query, retrieve relevant passages that answer the query"


def test_qwens_default_query_is_the_model_cards_to_the_byte() -> None:
    """No space after "Query:": one more is another token, and so another vector."""
    assert template(QWEN, "query", None) == f"Instruct: {DEFAULT_TASK}\nQuery:{{text}}"


@pytest.mark.parametrize("model", [QWEN, UNKNOWN])
def test_documents_stay_as_they_are(model: Model) -> None:
    assert template(model, "document", None) == "{text}"


def test_a_model_with_prefixes_gets_them() -> None:
    assert template(DEMO, "query", None) == "query: {text}"
    assert template(DEMO, "document", None) == "passage: {text}"


@pytest.mark.parametrize("role", ["query", "document"])
def test_a_task_is_put_into_the_models_form(role: Role) -> None:
    assert template(QWEN, role, "Find it") == "Instruct: Find it\nQuery:{text}"


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_ready_made_task_goes_by_its_name(name: str) -> None:
    assert template(QWEN, "query", name) == f"Instruct: {TASKS[name]}\nQuery:{{text}}"


@pytest.mark.parametrize("model", [QWEN, DEMO, UNKNOWN])
def test_an_empty_instruction_turns_it_off(model: Model) -> None:
    assert template(model, "query", "") == "{text}"
    assert template(model, "document", "") == "{text}"


def test_a_text_with_the_slot_is_a_whole_template() -> None:
    whole = "Instruct: mine\nQuery: {text}!"
    assert template(QWEN, "query", whole) == whole


@pytest.mark.parametrize(
    "prefix",
    ["Instruct: Find it\nQuery:", "Instruct: Find it", "  Instruct: Find it", "Find it\nQuery: "],
)
def test_a_handwritten_prefix_is_refused_with_both_right_forms(prefix: str) -> None:
    with pytest.raises(InstructionError) as caught:
        template(QWEN, "query", prefix)
    assert "query_instruction='Find it'" in str(caught.value)
    assert r"query_instruction='Instruct: Find it\nQuery:{text}'" in str(caught.value)


@pytest.mark.parametrize("model", [DEMO, UNKNOWN])
def test_a_task_for_a_model_without_a_form_is_refused_with_a_way_out(model: Model) -> None:
    with pytest.raises(InstructionError, match="Give a whole template instead") as caught:
        template(model, "document", "Find it")
    assert "document_instruction" in str(caught.value)
    assert "'Find it: {text}'" in str(caught.value)


def test_braces_and_newlines_in_a_text_stay() -> None:
    assert apply("Query:{text}", "a {b} {0}\n%s\\") == "Query:a {b} {0}\n%s\\"


def test_a_text_that_holds_the_slot_is_put_in_once() -> None:
    assert apply("<{text}>", "{text}") == "<{text}>"

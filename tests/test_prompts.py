from __future__ import annotations

import pytest

from emberd.catalog import Model, lookup
from emberd.errors import InstructionError
from emberd.prompts import TASKS, Role, Templates, apply, template, templates

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


@pytest.mark.parametrize(
    ("name", "wording"),
    [
        ("bitext", "Retrieve parallel sentences"),
        ("classification", "Given a text, classify its topic"),
        ("clustering", "Identify the topic or theme of the given news articles"),
        (
            "code",
            (
                "Given a question about coding, retrieval code or passage that can solve user's "
                "question"
            ),
        ),
        (
            "duplicates",
            (
                "Given a question, retrieve questions that are semantically equivalent to the "
                "given question"
            ),
        ),
        ("facts", "Given a scientific claim, retrieve documents that support or refute the claim"),
        ("questions", "Given a question, retrieve Wikipedia passages that answer the question"),
        ("similarity", "Retrieve semantically similar text"),
        ("web", DEFAULT_TASK),
    ],
)
def test_a_ready_made_task_has_the_official_wording(name: str, wording: str) -> None:
    """Also where the official wording is odd: the models were trained with it."""
    assert TASKS[name] == wording
    assert len(TASKS) == 9


@pytest.mark.parametrize("name", sorted(TASKS))
def test_task_name_selects_its_template(name: str) -> None:
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
    with pytest.raises(InstructionError, match="Omit it for the default") as caught:
        template(model, "document", "Find it")
    assert "document_instruction" in str(caught.value)
    assert f"default, {template(model, 'document', None)!r}; pass '' for none" in str(caught.value)


def test_braces_and_newlines_in_a_text_stay() -> None:
    assert apply("Query:{text}", "a {b} {0}\n%s\\") == "Query:a {b} {0}\n%s\\"


def test_a_text_that_holds_the_slot_is_put_in_once() -> None:
    assert apply("<{text}>", "{text}") == "<{text}>"


# ---- both roles together


def test_roles_have_templates_of_their_own() -> None:
    both = templates(QWEN, "Find it", None)
    assert both == Templates(query="Instruct: Find it\nQuery:{text}", document="{text}")


@pytest.mark.parametrize(
    ("query", "document", "wanted"),
    [
        (None, None, "{text}"),
        ("similarity", None, "Instruct: Retrieve semantically similar text\nQuery:{text}"),
        (None, "similarity", "Instruct: Retrieve semantically similar text\nQuery:{text}"),
        ("", None, "{text}"),
        ("similarity", "similarity", "Instruct: Retrieve semantically similar text\nQuery:{text}"),
        ("<{text}>", "<{text}>", "<{text}>"),
    ],
)
def test_symmetric_gives_both_roles_one_template(
    query: str | None, document: str | None, wanted: str
) -> None:
    assert templates(QWEN, query, document, symmetric=True) == Templates(wanted, wanted)


def test_symmetric_without_an_instruction_is_how_documents_are_embedded() -> None:
    """So that an index which was made the usual way can be asked."""
    usual = templates(DEMO, None, None)
    assert templates(DEMO, None, None, symmetric=True).query == usual.document == "passage: {text}"


def test_symmetric_refuses_two_instructions_that_differ() -> None:
    with pytest.raises(InstructionError, match="'code' and document_instruction='facts' differ"):
        templates(QWEN, "code", "facts", symmetric=True)


@pytest.mark.parametrize("name", ["bitext", "classification", "clustering", "similarity"])
@pytest.mark.parametrize("role", ["query", "document"])
def test_task_for_both_roles_is_rejected_for_one_role(role: Role, name: str) -> None:
    given: dict[Role, str | None] = {"query": None, "document": None, role: name}
    with pytest.raises(InstructionError, match=f"{role}_instruction='{name}'.*symmetric=True"):
        templates(QWEN, given["query"], given["document"])
    meant = templates(QWEN, given["query"] or "", given["document"] or "")
    assert "{text}" in (meant.query, meant.document)


# ---- what users of other classes have


@pytest.mark.parametrize(
    ("prefix", "task"),
    [
        (
            "Represent this sentence for searching relevant passages: ",
            "Represent this sentence for searching relevant passages",
        ),
        ("为这个句子生成表示以用于检索相关文章：", "为这个句子生成表示以用于检索相关文章"),
        ("Find it\n", "Find it"),
        (" Find it", "Find it"),
        ("instruct: Find the law", "Find the law"),
        ("INSTRUCT: Find the law\nQUERY:", "Find the law"),
        ("<instruct>Find it\n<query>", "<instruct>Find it <query>"),
        ("search_query: ", None),
        ("query:", None),
    ],
)
def test_a_raw_prefix_of_another_class_is_refused_and_never_doubled(
    prefix: str, task: str | None
) -> None:
    with pytest.raises(InstructionError, match="looks like a prefix") as caught:
        template(QWEN, "query", prefix)
    assert f"query_instruction={prefix + '{text}'!r}" in str(caught.value)
    assert ("only the task" in str(caught.value)) is (task is not None)
    if task is not None:
        assert f"query_instruction={task!r}" in str(caught.value)
        assert template(QWEN, "query", task) == f"Instruct: {task}\nQuery:{{text}}"


@pytest.mark.parametrize(
    ("instruction", "slot"),
    [
        ("query: {query}", "{query}"),
        ("search_query: {}", "{}"),
        ("Represent this: %s", "%s"),
        ("Instruct: {task}\nQuery:{text}", "{task}"),
        ("Instruct: {task_description}\nQuery: {query}", "{task_description}"),
    ],
)
def test_a_slot_that_nothing_is_put_into_is_refused(instruction: str, slot: str) -> None:
    with pytest.raises(InstructionError) as caught:
        template(QWEN, "query", instruction)
    assert f"contains {slot}, which is not replaced" in str(caught.value)


@pytest.mark.parametrize("name", ["translation", "Web", "similarty", "search_document"])
def test_one_word_that_is_no_name_is_refused_with_the_names(name: str) -> None:
    with pytest.raises(InstructionError, match="bitext, classification, clustering, code"):
        template(QWEN, "query", name)


def test_the_wording_of_a_task_for_both_sides_counts_as_its_name() -> None:
    with pytest.raises(InstructionError, match="symmetric=True"):
        templates(QWEN, TASKS["similarity"], None)


def test_a_model_that_takes_no_task_is_not_told_of_symmetric() -> None:
    with pytest.raises(InstructionError, match="in which form emberd/demo takes"):
        templates(DEMO, "similarity", None)


@pytest.mark.parametrize("prefix", ["query: ", "Instruct: Find it\nQuery:"])
@pytest.mark.parametrize("model", [DEMO, UNKNOWN])
def test_a_raw_prefix_for_a_model_without_a_form_is_shown_as_a_template(
    model: Model, prefix: str
) -> None:
    with pytest.raises(InstructionError) as caught:
        template(model, "query", prefix)
    assert f"query_instruction={prefix + '{text}'!r}" in str(caught.value)


def test_a_blank_instruction_is_neither_none_nor_a_task() -> None:
    with pytest.raises(InstructionError, match="looks like a prefix"):
        template(QWEN, "query", " \n")


@pytest.mark.parametrize("task", ["Find: it", "Follow the instructions: retrieve the next step"])
def test_a_task_with_a_colon_inside_is_a_task(task: str) -> None:
    assert template(QWEN, "query", task) == f"Instruct: {task}\nQuery:{{text}}"


@pytest.mark.parametrize(("word", "is_name"), [("web", True), ("law", False)])
def test_no_form_is_shown_that_would_be_refused_in_turn(word: str, is_name: bool) -> None:
    with pytest.raises(InstructionError) as caught:
        template(QWEN, "query", f"Instruct: {word}\nQuery:")
    assert (f"query_instruction={word!r}" in str(caught.value)) is is_name
    assert f"query_instruction={f'Instruct: {word}' + chr(10) + 'Query:{text}'!r}" in str(
        caught.value
    )

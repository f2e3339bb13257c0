"""What docs/roles.md says of tasks and identities, and docs/reranking.md of the prompt, is true."""

from __future__ import annotations

import re
from typing import Any

import pages
from emberd import TASKS, Embedder, InstructionError
from emberd.prompts import rerank_frame

_PAGE = pages.text_of("docs/roles.md")
_RERANKING = pages.text_of("docs/reranking.md")


def _refusal(instruction: str) -> str:
    try:
        Embedder(query_instruction=instruction)
    except InstructionError as error:
        return str(error)
    return ""


def test_what_is_asked_as_documents_are_embedded_has_their_template() -> None:
    _, block = pages.python("docs/roles.md")
    names: dict[str, Any] = {}
    exec(block.text, names)
    alike = names["alike"].embedder
    assert alike.query_template == alike.document_template == "{text}"


def test_the_table_of_tasks_is_whole_and_says_which_are_for_both_sides() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| (queries|both) \|$", _PAGE, re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(TASKS)
    assert {name for name, before in rows if before == "both"} == set(filter(_refusal, TASKS))


def test_the_identity_shown_is_a_real_one() -> None:
    assert f"\n{Embedder(dimensions=1024).identity}\n" in _PAGE


def test_each_prefix_shown_is_refused_and_its_right_form_taken() -> None:
    rows = re.findall(r'^\| `"(.*)"` \| `"(.*)"` \|$', _PAGE, re.MULTILINE)
    assert len(rows) == 2
    for there, here in rows:
        assert f"query_instruction={here!r}" in _refusal(there.replace(r"\n", "\n"))
        assert not _refusal(here)


def test_the_prompt_of_a_reranker_is_shown_to_the_byte() -> None:
    before, after = rerank_frame("Why does dough grow?")
    prompt = f"{before}Bread rises because yeast makes gas.{after}"
    assert f"\n```\n{prompt}```\n" in _RERANKING

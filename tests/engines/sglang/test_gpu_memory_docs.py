"""The page on GPUs agrees with the code."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from emberd.engines.model_shape import KNOWN
from emberd.engines.sglang.memory import GIB, plan_memory
from memory_cards import card, flags_table, generations_table, shared_table, table
from source_tree import ROOT

PAGE = (ROOT / "docs" / "gpu-memory.md").read_text(encoding="utf-8")
MIDDLE = KNOWN["Qwen/Qwen3-Embedding-4B"]


@pytest.mark.parametrize("made", [table, shared_table, flags_table, generations_table])
def test_a_table_of_the_page_is_the_one_that_the_code_makes(made: Callable[[], str]) -> None:
    assert made() in PAGE, f"docs/gpu-memory.md should hold:\n{made()}"


@pytest.mark.parametrize(("context", "words"), [(None, "17.6 GiB"), (8192, "some 14 GiB")])
def test_the_figures_for_a_shared_card_are_those_of_the_plan(
    context: int | None, words: str
) -> None:
    need = plan_memory(card(24), MIDDLE, context).need_bytes / GIB
    assert need == pytest.approx(float(words.split()[-2]), abs=0.05 if context is None else 0.5)
    assert words in PAGE.replace("\n", " ")


def test_page_says_that_its_figures_are_computed() -> None:
    assert "The figures on this page are computed." in PAGE

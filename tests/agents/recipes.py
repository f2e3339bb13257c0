"""The recipes of docs/agents.md, the texts in them, and what Qwen3-Embedding is to get."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import ModuleType
from typing import Final

from source_tree import ROOT

BREAD: Final = "Ana bakes rye bread on Fridays."
BOATS: Final = "Ana is afraid of boats."
QUESTION: Final = "What does she make before the weekend?"
TWO_LINES: Final = "What does she make\nbefore the weekend?"  # some frameworks mend newlines

QWEN_TEMPLATE: Final = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\n"
    "Query:{text}"
)

Recipe = Callable[[str], ModuleType]  # runs the code of a section, by its title
Sent = Callable[[], list[str]]  # the texts that were sent since the last call


def code(section: str) -> str:
    """Return the code of a section, which has one block of it."""
    page = (ROOT / "docs/agents.md").read_text(encoding="utf-8")
    _, found, rest = page.partition(f"\n## {section}\n")
    assert found, f"docs/agents.md has no section {section!r}"
    blocks: list[str] = re.findall(r"```python\n(.*?)```", rest.partition("\n## ")[0], re.DOTALL)
    assert len(blocks) == 1, f"{section} has {len(blocks)} blocks of code, and one is tested"
    return blocks[0]

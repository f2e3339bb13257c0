"""The recipes of docs/agents.md, the texts in them, and what Qwen3-Embedding is to get."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Final

import pages

BREAD: Final = "Ana bakes rye bread on Fridays."
BOATS: Final = "Ana is afraid of boats."
QUESTION: Final = "What does she make before the weekend?"
TWO_LINES: Final = "What does she make\nbefore the weekend?"  # some frameworks replace newlines

QWEN_TEMPLATE: Final = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\n"
    "Query:{text}"
)

Recipe = Callable[[str], ModuleType]  # runs the code of a section, by its title
Sent = Callable[[], list[str]]  # the texts that were sent since the last call


def code(section: str) -> str:
    """Return the code of a section, which has one block of it."""
    (block,) = pages.python("docs/agents.md", section)
    return block.text

"""The code of docs/integrations.md."""

from __future__ import annotations

from typing import Any

import pytest

import pages
from managed import MODEL


def run(section: str, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the code of a section with emberd/demo, and return the names that it made."""
    (block,) = pages.python("docs/integrations.md", section)
    patch.setenv("EMBERD_MODEL", MODEL)
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(block.text, block.page, "exec", dont_inherit=True), names)
    return names

"""The code of docs/integrations.md."""

from __future__ import annotations

import re
from typing import Any

import pytest

from managed import MODEL
from source_tree import ROOT


def run(section: str, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the code of a section with emberd/demo, and return the names that it made."""
    page = (ROOT / "docs/integrations.md").read_text(encoding="utf-8")
    _, found, rest = page.partition(f"\n## {section}\n")
    assert found, f"docs/integrations.md has no section {section!r}"
    (block,) = re.findall(r"```python\n(.*?)```", rest.partition("\n## ")[0], re.DOTALL)
    patch.setenv("EMBERD_MODEL", MODEL)
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(block, "docs/integrations.md", "exec", dont_inherit=True), names)
    return names

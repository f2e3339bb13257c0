"""``docs/pains.md`` and ``docs/robustness.md`` name tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from typing import Final

from source_tree import ROOT, Function

_PAGES: Final = "\n".join(
    (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("pains.md", "robustness.md")
)
# All that looks like the name of a test, so that a slip of the pen is found as well.
_NAMES: Final = sorted(set(re.findall(r"`([^`\s]*\.py::[^`\s]*)`", _PAGES)))


@cache
def _tests_of(file: str) -> set[str]:
    """Return ``test`` and ``Class::test`` of a file below ``tests/``."""
    found = set()
    for node in ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{one.name}" for one in node.body if isinstance(one, Function)}
        elif isinstance(node, Function):
            found.add(node.name)
    return {name for name in found if re.search(r"(^|::)test_\w+$", name)}


def test_named_tests_exist() -> None:
    assert _NAMES
    missing = []
    for name in _NAMES:
        file, _, test = name.partition("::")
        if not (ROOT / "tests" / file).is_file() or test not in _tests_of(file):
            missing.append(name)
    assert missing == []

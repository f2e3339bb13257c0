"""``docs/pains.md``: every complaint is answered, and every test that it names is there."""

from __future__ import annotations

import ast
import re
from functools import cache
from typing import Final

import pytest

from source_tree import ROOT, Function

_PAGE: Final = (ROOT / "docs" / "pains.md").read_text(encoding="utf-8")
_ROW: Final = re.compile(r"^\| (\d+)\. (.+) \| (.+) \| (.+) \|$", re.MULTILINE)
_ROWS: Final = [match.groups() for match in _ROW.finditer(_PAGE)]
_ANSWER: Final = re.compile(r"\*\*(Cannot|Partly|Can)\.?\*\*[ ,:]+\S.*")
# All that looks like the name of a test, so that a slip of the pen is found as well.
_NAMES: Final = sorted(set(re.findall(r"`([^`\s]*::[^`]*)`", _PAGE)))
_MOST_LINKS: Final = 3


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


@pytest.mark.parametrize("name", _NAMES)
def test_a_test_that_is_named_is_there(name: str) -> None:
    file, _, test = name.partition("::")
    assert (ROOT / "tests" / file).is_file()
    assert test in _tests_of(file)


def test_all_41_are_there_in_their_order() -> None:
    assert [int(number) for number, *_ in _ROWS] == list(range(1, 42))


@pytest.mark.parametrize(("number", "pain", "here", "shown"), _ROWS, ids=[row[0] for row in _ROWS])
def test_each_has_links_an_answer_and_what_shows_it(
    number: str, pain: str, here: str, shown: str
) -> None:
    assert 1 <= len(re.findall(r"\]\(https://github\.com/[\w./-]+\d\)", pain)) <= _MOST_LINKS
    answer = _ANSWER.fullmatch(here)
    assert answer, f"{number} begins with none of the three answers"
    assert all("::" in name for name in re.findall(r"`([^`]+)`", shown))
    assert "::" in shown or answer[1] == "Can", f"{number} names no test"

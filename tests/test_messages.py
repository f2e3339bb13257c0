"""The wording of everything that users read, in one file: tests/messages.txt.

Other tests assert what an error is about: its type, its attributes, and the facts in its text. Here
a change of wording shows up as one line of a diff. To accept it:
``python tests/test_messages.py > tests/messages.txt``.
"""

from __future__ import annotations

import ast
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import source_tree

SNAPSHOT: Final = Path(__file__).with_name("messages.txt")
# Shorter strings are names, formats and values.
WORDS: Final = 4


def messages() -> str:
    """Return every text of four words or more in the sources, by file; no docstrings."""
    files = [(module.path, _texts(module.tree)) for module in source_tree.all_modules()]
    files += [
        (rules, _values(tomllib.loads(rules.read_text(encoding="utf-8"))))
        for rules in sorted(source_tree.PACKAGES["emberd"].rglob("*.toml"))
    ]
    blocks = []
    for path, texts in files:
        long = [text.strip() for text in texts if len(text.split()) >= WORDS]
        if long:
            lines = "".join(f"{textwrap.indent(text, '    ')}\n" for text in long)
            blocks.append(f"{path.relative_to(source_tree.ROOT).as_posix()}\n{lines}")
    return "\n".join(blocks)


def _texts(node: ast.AST) -> Iterator[str]:
    """Yield the strings below a node in their order."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(map(_part, node.values))
    else:
        for child in ast.iter_child_nodes(node):
            # A string that is a statement by itself is a docstring.
            if not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)):
                yield from _texts(child)


def _part(part: ast.expr) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    assert isinstance(part, ast.FormattedValue)
    # Versions of Python write longer expressions in different ways.
    named = isinstance(part.value, ast.Name | ast.Attribute)
    return f"{{{ast.unparse(part.value)}}}" if named else "{...}"


def _values(value: object) -> Iterator[str]:
    """Yield the strings of a TOML table in their order."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _values(one)
    elif isinstance(value, list):
        for one in value:
            yield from _values(one)


def test_wording_is_as_recorded() -> None:
    recorded = SNAPSHOT.read_text(encoding="utf-8")
    assert messages() == recorded, "to accept: python tests/test_messages.py > tests/messages.txt"


if __name__ == "__main__":
    sys.stdout.write(messages())

"""Which options an installed SGLang knows, read from its source without importing it.

Importing it takes seconds and needs torch; and an option that a version does not know ends its
start with exit code 2.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_ROOT: Final = ("sglang", "srt")
_MAIN: Final = "server_args.py"
_GROUPS: Final = "arg_groups"
_RECORD: Final = "ServerArgs"
_FIELDS: Final = "fields"
_ANNOTATED: Final = ("A", "Annotated")
_ADD: Final = "add_argument"
_NAMES: Final = ("aliases", "cli_name")
_NAME: Final = "cli_name"
_UNREGISTERED: Final = "no_cli"
_DASHES: Final = "--"


def known_options(packages: str) -> frozenset[str] | None:
    """Return the names of all options, such as ``--model-path``.

    Until mid-2026 each was added to the parser by a call; since then most are fields whose
    annotations say how. Both are read.

    Args:
        packages: The ``site-packages`` folder that holds SGLang.

    Returns:
        None when there is no SGLang, or none that is laid out in a way known to us.
    """
    root = Path(packages).joinpath(*_ROOT)
    files = [root / _MAIN, *sorted((root / _GROUPS).rglob("*.py"))]
    try:
        trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in files}
    except (OSError, SyntaxError, ValueError):
        return None
    names = {name for file, tree in trees.items() for name in _options(file, tree)}
    return frozenset(names) or None


def _options(file: Path, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node) == _ADD:
            yield from _texts(node.args)
        elif isinstance(node, ast.ClassDef) and _holds_options(file, node):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    yield from _of_field(field.target.id, field.annotation)


def _holds_options(file: Path, node: ast.ClassDef) -> bool:
    return node.name == _RECORD or file.parent.name == _FIELDS


def _of_field(name: str, annotation: ast.expr) -> Iterator[str]:
    if not isinstance(annotation, ast.Subscript) or _name(annotation.value) not in _ANNOTATED:
        return
    words = {
        word.arg: word.value
        for node in ast.walk(annotation.slice)
        if isinstance(node, ast.Call)
        for word in node.keywords
        if word.arg
    }
    hidden = words.get(_UNREGISTERED)
    if isinstance(hidden, ast.Constant) and hidden.value:
        return
    if _NAME not in words:
        yield _DASHES + name.replace("_", "-")
    for key in _NAMES:
        if key in words:
            yield from _texts(ast.walk(words[key]))


def _texts(nodes: Iterator[ast.AST] | list[ast.expr]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from [node.value] if node.value.startswith(_DASHES) else []


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else ""


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""

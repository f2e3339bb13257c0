"""Passages to index: docstrings of the standard library, files of a folder, a multilingual set."""

from __future__ import annotations

import ast
import json
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from emberd import SettingError

_MIN_CHARACTERS: Final = 60
_MAX_CHARACTERS: Final = 400
_LETTERS_SHARE: Final = 0.8
_NOT_DOCUMENTATION: Final = {"idlelib", "lib2to3", "site-packages", "test", "tests"}
SUFFIXES: Final = ".md, .py, .rst, .txt"
_BLANK_LINES: Final = re.compile(r"\n[ \t]*\n")
_SET: Final = Path(__file__).with_name("multilingual.json")

_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_Documented = ast.Module | _Definition


@dataclass(frozen=True, slots=True)
class Passage:
    """A text and where it comes from; ``id`` is unique in the demo."""

    id: str
    source: str
    text: str


@dataclass(frozen=True, slots=True)
class Question:
    """A query, and the id of the passage that answers it if that is known."""

    language: str
    text: str
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class MultilingualSet:
    """The set that recall is measured on."""

    passages: tuple[Passage, ...]
    questions: tuple[Question, ...]
    languages: tuple[str, ...]


def of_python(limit: int) -> list[Passage]:
    """Return first paragraphs of docstrings of the running Python's standard library.

    The sources are parsed, not imported. The order is stable: the docstrings of all modules, then
    those of each module's first class or function, then of its second, and so on.
    """
    ranked = sorted(
        (rank, name, text)
        for path, module in _modules()
        for rank, (name, text) in enumerate(_docstrings(path, module))
    )
    return _numbered(((name, text) for _, name, text in ranked), "py", limit)


def of_folder(folder: Path, limit: int, max_bytes: int) -> list[Passage]:
    """Return the paragraphs of the text files in ``folder``, split at ``max_bytes`` of UTF-8.

    Raises:
        SettingError: The folder contains no text.
    """
    found = _numbered(_paragraphs(folder, max_bytes), "doc", limit)
    if not found:
        raise SettingError(f"--docs {folder} has no paragraph of text in {SUFFIXES} files.")
    return found


def multilingual() -> MultilingualSet:
    """Return the multilingual set: 60 passages, and 30 questions with their answers."""
    content: dict[str, Any] = json.loads(_SET.read_text(encoding="utf-8"))
    return MultilingualSet(
        tuple(Passage(p["id"], f"{p['id']} ({p['lang']})", p["text"]) for p in content["passages"]),
        tuple(Question(q["lang"], q["text"], q["answer"]) for q in content["queries"]),
        tuple(sorted({p["lang"] for p in content["passages"]})),
    )


def _modules() -> Iterator[tuple[Path, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted([*root.glob("*.py"), *root.glob("*/__init__.py")]):
        name = path.parent.name if path.name == "__init__.py" else path.stem
        if not name.startswith("_") and name not in _NOT_DOCUMENTATION:
            yield path, name


def _docstrings(path: Path, module: str) -> Iterator[tuple[str, str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in the library's sources
        tree = ast.parse(path.read_bytes())
    named: list[tuple[str, _Documented]] = [(module, tree)]
    named += [
        (f"{module}.{node.name}", node)
        for node in tree.body
        if isinstance(node, _Definition) and not node.name.startswith("_")
    ]
    for name, documented in named:
        text = _first_paragraph(ast.get_docstring(documented) or "")
        if _MIN_CHARACTERS <= len(text) <= _MAX_CHARACTERS and _is_prose(text):
            yield name, text


def _first_paragraph(text: str) -> str:
    return " ".join(_BLANK_LINES.split(text.strip(), maxsplit=1)[0].split())


def _is_prose(text: str) -> bool:
    # Excludes signatures, rulers and interpreter sessions.
    letters = sum(character.isalpha() or character == " " for character in text)
    return text[0].isalpha() and "->" not in text and letters >= _LETTERS_SHARE * len(text)


def _paragraphs(folder: Path, max_bytes: int) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if path.suffix.casefold() in SUFFIXES.split(", ") and path.is_file() and not hidden:
            for block in _BLANK_LINES.split(path.read_text(encoding="utf-8", errors="replace")):
                for piece in _pieces(" ".join(block.split()), max_bytes):
                    yield str(inside), piece


def _pieces(text: str, max_bytes: int) -> Iterator[str]:
    # By bytes: a text has hardly ever more tokens than bytes.
    encoded = text.encode()
    while len(encoded) > max_bytes:
        space = encoded.rfind(b" ", 0, max_bytes)
        head = encoded[: space if space > 0 else max_bytes].decode(errors="ignore")
        yield head
        encoded = encoded[len(head.encode()) :].lstrip()
    if len(encoded) >= _MIN_CHARACTERS:
        yield encoded.decode()


def _numbered(named: Iterable[tuple[str, str]], prefix: str, limit: int) -> list[Passage]:
    names: dict[str, str] = {}
    for name, text in named:
        names.setdefault(text, name)
    return [
        Passage(f"{prefix}{number}", name, text)
        for number, (text, name) in enumerate(islice(names.items(), limit), start=1)
    ]

"""Gathering real passages: docstrings of the standard library, files of a folder, our own set."""

from __future__ import annotations

import ast
import json
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from emberd.errors import SettingError

_SHORTEST_CHARACTERS: Final = 60
_LONGEST_CHARACTERS: Final = 400
_LETTERS_SHARE: Final = 0.8
_NOT_DOCUMENTATION: Final = {"idlelib", "lib2to3", "site-packages", "test", "tests"}
_SUFFIXES: Final = {".md", ".py", ".rst", ".txt"}
_BLANK_LINES: Final = re.compile(r"\n[ \t]*\n")
_SET: Final = Path(__file__).parents[1] / "multilingual.json"

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
    """A query of the multilingual set, and the id of the passage that answers it."""

    language: str
    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class Multilingual:
    """The set that recall is measured on."""

    passages: tuple[Passage, ...]
    questions: tuple[Question, ...]
    languages: tuple[str, ...]


def of_python(limit: int) -> list[Passage]:
    """Return first paragraphs of docstrings of the running Python's standard library.

    The sources are read, not imported. The order is lasting: every module's own docstring, then
    its first class or function, then its second.
    """
    ranked = sorted(
        (rank, name, text)
        for path, module in _modules()
        for rank, (name, text) in enumerate(_docstrings(path, module))
    )
    return _numbered(((name, text) for _, name, text in ranked), "py", limit)


def of_folder(folder: Path, limit: int, longest_bytes: int) -> list[Passage]:
    """Return the paragraphs of the text files in ``folder``, cut to ``longest_bytes`` of UTF-8.

    Raises:
        SettingError: There is no such folder, or no text in it.
    """
    if not folder.is_dir():
        raise SettingError(f"--docs {folder} is no folder. Give one with {_endings()} files.")
    found = _numbered(_paragraphs(folder, longest_bytes), "doc", limit)
    if not found:
        raise SettingError(
            f"--docs {folder} holds no paragraph in {_endings()} files. Give another folder."
        )
    return found


def multilingual() -> Multilingual:
    """Return the multilingual set: 60 passages, and 30 queries with their answers."""
    content: dict[str, Any] = json.loads(_SET.read_text(encoding="utf-8"))
    return Multilingual(
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
        warnings.simplefilter("ignore")  # old escapes in sources that are not ours to mend
        tree = ast.parse(path.read_bytes())
    named: list[tuple[str, _Documented]] = [(module, tree)]
    named += [
        (f"{module}.{node.name}", node)
        for node in tree.body
        if isinstance(node, _Definition) and not node.name.startswith("_")
    ]
    for name, documented in named:
        text = _first_paragraph(ast.get_docstring(documented) or "")
        if _SHORTEST_CHARACTERS <= len(text) <= _LONGEST_CHARACTERS and _is_prose(text):
            yield name, text


def _first_paragraph(text: str) -> str:
    return " ".join(_BLANK_LINES.split(text.strip(), maxsplit=1)[0].split())


def _is_prose(text: str) -> bool:
    # Signatures, rulers and sessions of the interpreter are no sentences.
    letters = sum(character.isalpha() or character == " " for character in text)
    return text[0].isalpha() and "->" not in text and letters >= _LETTERS_SHARE * len(text)


def _paragraphs(folder: Path, longest_bytes: int) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if path.suffix.casefold() in _SUFFIXES and path.is_file() and not hidden:
            for block in _BLANK_LINES.split(path.read_text(encoding="utf-8", errors="replace")):
                for piece in _pieces(" ".join(block.split()), longest_bytes):
                    yield str(inside), piece


def _pieces(text: str, longest_bytes: int) -> Iterator[str]:
    # By bytes: no tokenizer makes more tokens of a text than it has bytes.
    encoded = text.encode()
    while len(encoded) > longest_bytes:
        space = encoded.rfind(b" ", 0, longest_bytes)
        head = encoded[: space if space > 0 else longest_bytes].decode(errors="ignore")
        yield head
        encoded = encoded[len(head.encode()) :].lstrip()
    if len(encoded) >= _SHORTEST_CHARACTERS:
        yield encoded.decode()


def _numbered(named: Iterable[tuple[str, str]], prefix: str, limit: int) -> list[Passage]:
    once: dict[str, str] = {}
    for name, text in named:
        once.setdefault(text, name)
    return [
        Passage(f"{prefix}{number}", name, text)
        for number, (text, name) in enumerate(islice(once.items(), limit), start=1)
    ]


def _endings() -> str:
    return ", ".join(sorted(_SUFFIXES))


def python_version() -> str:
    """Return the running Python's version as people write it."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"

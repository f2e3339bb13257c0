"""The pages of the documentation and the READMEs, and the blocks of code in them."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from source_tree import ROOT

FENCE: Final = re.compile(
    r"^ *(?P<fence>```+|~~~+)(?P<language>[^\s`]*)[^\n]*\n(?P<body>.*?)^ *(?P=fence) *$",
    re.MULTILINE | re.DOTALL,
)
_INLINE: Final = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_SHELL: Final = frozenset({"", "bash", "sh", "shell", "console"})
_SEPARATORS: Final = frozenset("|;&()")


@dataclass(frozen=True)
class Block:
    """One block of a page: where it is, what it is written in, and its text.

    Args:
        page: The path in the repository.
        line: The number of its first line of code.
        language: The word after the fence, empty if there is none.
        text: The code, without the indentation of a list.
        section: The heading above it.
    """

    page: str
    line: int
    language: str
    text: str
    section: str

    @property
    def place(self) -> str:
        """Its place in the form that editors jump to."""
        return f"{self.page}:{self.line}"


@cache
def text_of(page: str) -> str:
    """Return the text of a page."""
    return (ROOT / page).read_text(encoding="utf-8")


def all_pages() -> list[str]:
    """Return every page that users read, as paths in the repository."""
    found = [
        *ROOT.glob("*.md"),
        *(ROOT / "backend").glob("*.md"),
        *(ROOT / "examples").glob("*.md"),
        *(ROOT / "integrations").glob("*/*.md"),
        *(ROOT / "integrations").glob("*/docs/**/*.md*"),
        *(ROOT / "deploy").rglob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
    ]
    names = sorted(_name(path) for path in found if path.suffix in {".md", ".mdx"})
    return [name for name in names if not name.startswith("docs/_build/")]


def is_translation(page: str) -> bool:
    """Return whether a page has the code of another, as ``test_translations.py`` checks."""
    return page.startswith("docs/zh/") or page.endswith(".zh.md")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def blocks(page: str) -> tuple[Block, ...]:
    """Return all blocks of code of a page, in its order."""
    return tuple(blocks_of(page, text_of(page)))


def blocks_of(page: str, text: str) -> list[Block]:
    """Return the blocks of a text that belongs to a page."""
    found = []
    for match in FENCE.finditer(text):
        before = text[: match.start()]
        headings = re.findall(r"^#+ (.*)$", FENCE.sub("", before), re.MULTILINE)
        line = before.count("\n") + 2
        body = textwrap.dedent(match["body"])
        found.append(Block(page, line, match["language"], body, headings[-1] if headings else ""))
    return found


def python(page: str, section: str | None = None) -> list[Block]:
    """Return the blocks of Python of a page, or of one of its sections."""
    found = [block for block in blocks(page) if block.language == "python"]
    if section is None:
        return found
    assert section in {block.section for block in found}, f"{page} has no code in {section!r}"
    return [block for block in found if block.section == section]


def program(parts: list[Block]) -> str:
    """Return blocks of a page as one program, whose lines have the numbers of the page."""
    lines: list[str] = []
    for block in parts:
        lines += [""] * (block.line - 1 - len(lines))
        lines += block.text.splitlines()
    return "\n".join(lines) + "\n"


def commands(block: Block, program: str = "emberd") -> Iterator[tuple[int, list[str]]]:
    """Yield the line and the arguments of each call of a program in a block of shell code.

    If a block shows a prompt, its other lines are output.
    """
    if block.language not in _SHELL:
        return
    lines = block.text.splitlines()
    is_session = any(line.startswith("$ ") for line in lines)
    number = 0
    while number < len(lines):
        first, line = number, lines[number].strip()
        while line.endswith("\\") and number + 1 < len(lines):
            number += 1
            line = f"{line[:-1]} {lines[number].strip()}"
        number += 1
        if is_session and not line.startswith("$ "):
            continue
        if f"{program} " in line:
            for words in _calls(line.removeprefix("$ "), program):
                yield block.line + first, words


def inline_commands(page: str) -> Iterator[list[str]]:
    """Yield the arguments of each command ``emberd`` in the sentences of a page."""
    for code in _INLINE.findall(FENCE.sub("", text_of(page))):
        words = " ".join(code.split())
        if re.match(r"(\w+=\S+ )*emberd ", words):
            yield from _calls(words.replace("\\|", "|"), "emberd")


def _calls(line: str, program: str) -> Iterator[list[str]]:
    """Yield the arguments of each call of a program in a line of the shell."""
    # A command in quotes, as in eval "$(emberd env)", is a command too.
    line = re.sub(r'"\$\(([^)"]*)\)"', r"; \1 ;", line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&()<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= _SEPARATORS:
            yield from _arguments(words, program)
            words = []
        else:
            words.append(word)


def _arguments(words: list[str], program: str) -> Iterator[list[str]]:
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words = words[1:]
    if words and words[0].rpartition("/")[2] == program:
        given = [word.strip("[]") if word[0] in "[]-" else word for word in words[1:]]
        redirect = next((at for at, word in enumerate(given) if set(word) <= set("<>")), len(given))
        yield given[:redirect]

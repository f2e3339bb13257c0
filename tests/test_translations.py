"""The Chinese pages say what the English ones say: same structure, code, links and figures.

Below each heading of a translation is a comment with a hash of the English section. If the English
changes, read the Chinese section, change it if necessary, and store the new hashes with
PYTHONPATH=tests python -c 'import test_translations as t; t.accept("README.zh.md")'.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from dataclasses import dataclass
from typing import Final

import pytest

import pages
from source_tree import ROOT

# A translation -> its source.
SOURCES: Final = {
    "README.zh.md": "README.md",
    "docs/zh/index.md": "docs/index.md",
    "docs/zh/gpu.md": "docs/start/gpu.md",
    "docs/zh/laptop.md": "docs/start/laptop.md",
    "docs/zh/existing-server.md": "docs/start/existing-server.md",
    "docs/zh/container.md": "docs/start/container.md",
    "docs/zh/cluster.md": "docs/start/cluster.md",
}
_DIRECTIVE: Final = re.compile(r"^(```+)\{.*?^\1 *\n", re.MULTILINE | re.DOTALL)
_MARK: Final = re.compile(r"<!-- source: ?(\w*) -->\n\n?")
_CHINESE: Final = re.compile("[\u4e00-\u9fff]")
_INLINE: Final = re.compile(r"`[^`]+`")
_ORDINAL: Final = re.compile(r"^\d+\. ", re.MULTILINE)
_OTHER_LANGUAGE: Final = re.compile(r"^\[(English|中文)\][^\n]*\n\n?", re.MULTILINE)
_LINK: Final = re.compile(r"\]\(([^)\s]+)\)")
_PICTURE: Final = re.compile(r'\b(?:src|srcset)="([^"]+)"')


@dataclass(frozen=True)
class Section:
    """A part of a page under one heading, without the heading of the next."""

    page: str
    heading: str
    level: int
    body: str

    @property
    def hash(self) -> str:
        """What changes with the text; not with the width of its lines or a table of contents."""
        text = f"{self.heading}\n{_DIRECTIVE.sub('', self.body)}"
        return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:12]

    @property
    def blocks(self) -> list[tuple[str, str]]:
        """The language and the code of each block, without the comments of a shell."""
        found = [
            (block.language, re.sub(r"[ \t]+# .*", "", block.text).strip())
            for block in pages.blocks_of(self.page, self.body)
        ]
        return [block for block in found if not block[0].startswith("{")]

    @property
    def prose(self) -> str:
        """The text without blocks of code."""
        return pages.FENCE.sub("", _MARK.sub("", self.body))

    @property
    def links(self) -> set[str]:
        """What it links to and shows, from the root, translations as their sources."""
        folder = os.path.dirname(self.page)
        found = set()
        for link in (*_LINK.findall(self.prose), *_PICTURE.findall(self.prose)):
            path, sign, anchor = link.partition("#")
            if "://" not in link and path:
                path = os.path.normpath(os.path.join(folder, path))
            found.add(f"{SOURCES.get(path, path)}{sign}{anchor}")
        return found - {SOURCES.get(self.page, self.page)}  # a page and its translation

    @property
    def code(self) -> Counter[str]:
        """The code in its sentences."""
        return Counter(" ".join(code.split()) for code in _INLINE.findall(self.prose))

    @property
    def figures(self) -> Counter[str]:
        """The numbers in its sentences, in any order."""
        bare = _ORDINAL.sub("", _LINK.sub("]", _INLINE.sub("", self.prose)))
        return Counter(re.findall(r"\d[\d.,]*\d|\d", bare))


def sections(page: str) -> list[Section]:
    """Return the sections of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    hidden = pages.FENCE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    heads = list(re.finditer(r"^(#+) (.*)\n", hidden, re.MULTILINE))
    ends = [*(head.start() for head in heads[1:]), len(text)]
    return [
        Section(page, head[2], len(head[1]), text[head.end() : end])
        for head, end in zip(heads, ends, strict=True)
    ]


def accept(page: str) -> None:
    """Store the hashes of the English sections in a translation."""
    hashes = iter(section.hash for section in sections(SOURCES[page]))
    text = (ROOT / page).read_text(encoding="utf-8")
    stored = re.sub(r"<!-- source: ?\w* -->", lambda _: f"<!-- source: {next(hashes)} -->", text)
    (ROOT / page).write_text(stored, encoding="utf-8")


@pytest.fixture(params=SOURCES)
def pair(request: pytest.FixtureRequest) -> list[tuple[Section, Section]]:
    """The sections of a source and of its translation."""
    source, translation = sections(SOURCES[request.param]), sections(request.param)
    assert [each.level for each in source] == [each.level for each in translation], (
        f"{[each.heading for each in source]} and {[each.heading for each in translation]}"
    )
    return list(zip(source, translation, strict=True))


def test_the_translation_was_read_after_the_last_change_of_the_english(
    pair: list[tuple[Section, Section]],
) -> None:
    changed = [
        f"{source.page}: {source.heading} -> {translation.page}: {translation.heading}"
        for source, translation in pair
        if _MARK.findall(translation.body) != [source.hash]
    ]
    assert changed == []


def test_code_links_and_figures_are_those_of_the_english(
    pair: list[tuple[Section, Section]],
) -> None:
    for source, translation in pair:
        where = f"{translation.page}: {translation.heading}"
        assert translation.blocks == source.blocks, where
        assert translation.links == source.links, where
        assert translation.code == source.code, where
        assert translation.figures == source.figures, where


def test_every_paragraph_is_translated(pair: list[tuple[Section, Section]]) -> None:
    for source, translation in pair:
        theirs, ours = _parts(source), _parts(translation)
        assert len(theirs) == len(ours), f"{translation.page}: {translation.heading}"
        for english, chinese in zip(theirs, ours, strict=True):
            assert english == chinese or _CHINESE.search(chinese), chinese
            assert not re.search(r"\b[a-z]+(,? [a-z]+){4,}", _INLINE.sub("", chinese)), chinese


def _parts(section: Section) -> list[str]:
    """The paragraphs, entries of lists and rows of tables of a section."""
    prose = _OTHER_LANGUAGE.sub("", section.prose).strip()
    parts = re.split(r"\n\s*\n|\n(?=\s*(?:\* |\d+\. |\|))", prose)
    return [" ".join(part.split()) for part in parts if part.strip()]


def test_every_chinese_page_is_compared() -> None:
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs/zh").glob("*.md")}
    assert there | {"README.zh.md"} == set(SOURCES)
    assert "(README.zh.md)" in pages.text_of("README.md")
    assert "(zh/index.md)" in pages.text_of("docs/index.md")


def test_a_change_of_the_english_changes_the_hash_and_a_new_line_does_not() -> None:
    section = Section("README.md", "A", 2, "one two\nthree\n")
    assert section.hash == Section("README.md", "A", 2, "one two three").hash
    assert section.hash != Section("README.md", "A", 2, "one two four").hash
    assert section.hash != Section("README.md", "B", 2, "one two three").hash

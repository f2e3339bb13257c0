"""docs/llms.txt, the list of pages for language models, is made of the table of contents.

To write it again: PYTHONPATH=tests python -c 'import test_llms_txt as t; t.write()'.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from source_tree import ROOT

DOCS: Final = ROOT / "docs"
LIST: Final = DOCS / "llms.txt"
HEAD: Final = """\
# emberd

> Drop-in embeddings and rerankers for LangChain and LlamaIndex that find or start their own server.

The addresses are relative to this file.
"""
# Lines that begin so are tables, code, comments, headings and lists.
_NO_PROSE: Final = ("|", "```", "<", "#", ":", "*", "1.", "[English]")


def _contents() -> Iterator[tuple[str, list[str]]]:
    """Yield the captions of the tables of contents with their pages."""
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    for caption, pages in re.findall(
        r"```\{toctree\}\n:hidden:\n:caption: ([^\n]*)\n\n(.*?)```", text, re.DOTALL
    ):
        yield caption, pages.split()


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)).strip()


def _summary(path: Path) -> tuple[str, str]:
    """Return the title of a page and its first sentence."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "".join(json.loads(text)["cells"][0]["source"])
    title, *blocks = text.split("\n\n")
    prose = next((b for b in blocks if not b.startswith(_NO_PROSE)), "")
    sentence = re.split(r"(?<=[.])\s|(?<=。)", _plain(prose), maxsplit=1)[0]
    return title.removeprefix("# ").strip(), sentence.rstrip(":：")


def _list() -> str:
    parts = [HEAD]
    for caption, pages in _contents():
        parts.append(f"\n## {caption}\n\n")
        for page in pages:
            files = (DOCS / f"{page}{suffix}" for suffix in (".md", ".ipynb"))
            title, sentence = _summary(next(path for path in files if path.exists()))
            parts.append(f"- [{title}]({page}.html){': ' if sentence else ''}{sentence}\n")
    return "".join(parts)


def test_the_list_of_pages_is_made_of_the_table_of_contents() -> None:
    assert LIST.read_text(encoding="utf-8") == _list()


def test_the_list_has_every_page_but_the_single_decisions() -> None:
    pages = {path.relative_to(DOCS).with_suffix(".html").as_posix() for path in DOCS.rglob("*.md")}
    listed = set(re.findall(r"\]\((\S+\.html)\)", _list()))
    missing = {page for page in pages - listed if not page.startswith(("decisions/0", "_build/"))}
    assert missing == {"index.html"}


def write() -> None:
    """Write the list."""
    LIST.write_text(_list(), encoding="utf-8")

"""The pages that are written for the documentation of LangChain and LlamaIndex.

Code in pages runs in ``test_snippets.py``; here are the notebooks, and the form of the pages.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Final

import pytest
import yaml

import langchain_emberd
import llama_index.embeddings.emberd
import llama_index.postprocessor.emberd
import notebooks
import pages
from managed import stopped_at_the_end
from source_tree import ROOT
from stand_ins import stand_ins

__all__ = ["stand_ins", "stopped_at_the_end"]

LANGCHAIN: Final = "integrations/langchain-emberd/docs"
EMBEDDINGS: Final = ROOT / "integrations/llama-index-embeddings-emberd/docs"
RERANK: Final = ROOT / "integrations/llama-index-postprocessor-emberd/docs"
# What a package is listed with until it is used enough for pages in LangChain's documentation.
LISTING: Final = "integration_external_docs.yaml"
# The sections that LangChain's pages have, in their order.
SECTIONS: Final = {
    "embeddings/emberd.mdx": (
        *("Overview", "Setup", "Instantiation", "Indexing and retrieval", "Direct usage"),
        "API reference",
    ),
    "retrievers/emberd_reranker.mdx": (
        *("Overview", "Setup", "Instantiation", "Usage", "API reference"),
    ),
    "providers/emberd.mdx": (
        *("Installation and setup", "Embedding models", "Document compressors"),
    ),
}
# The class that a page describes. LangChain's tables are generated from it.
CLASSES: Final = {
    "embeddings/emberd.mdx": "EmberdEmbeddings",
    "retrievers/emberd_reranker.mdx": "EmberdReranker",
}


@pytest.mark.parametrize("name", SECTIONS)
def test_a_page_for_langchain_has_its_form(name: str) -> None:
    text = pages.text_of(f"{LANGCHAIN}/{name}")
    _, matter, rest = text.split("---\n", 2)
    read = yaml.safe_load(matter)
    listed = read.pop("integration", {})
    assert set(read) == {"title", "description"}
    if name in CLASSES:
        assert read["title"] == f"{CLASSES[name]} integration"
        # The maintainers of the documentation decide which package is "featured".
        assert (listed.pop("name"), listed.pop("pypi")) == (CLASSES[name], "langchain-emberd")
        assert set(listed) <= {"self_host", "cloud_offering"}
    else:
        assert listed == {}
    prose = pages.FENCE.sub("", rest)
    assert tuple(re.findall("^## (.*)$", prose, re.MULTILINE)) == SECTIONS[name]
    assert not re.search("^# ", prose, re.MULTILINE), "the title is the heading"
    assert rest.count("<CodeGroup>") == rest.count("</CodeGroup>") == 1


def test_the_pages_for_langchain_are_complete() -> None:
    there = {path.relative_to(ROOT / LANGCHAIN).as_posix() for path in _files(ROOT / LANGCHAIN)}
    assert there == {*SECTIONS, LISTING}
    links = re.findall(r"\(/oss/integrations/(\w+/\w+)\)", "".join(_texts()))
    assert {f"{link}.mdx" for link in links} == set(SECTIONS)


def test_the_listing_for_langchain_has_the_classes_that_have_pages() -> None:
    rows = yaml.safe_load((ROOT / LANGCHAIN / LISTING).read_text(encoding="utf-8"))["python"]
    listed = {folder: [row["name"] for row in rows[folder]] for folder in rows}
    assert listed == {name.partition("/")[0]: [found] for name, found in CLASSES.items()}
    for row in (row for folder in rows.values() for row in folder):
        assert hasattr(langchain_emberd, row["name"])
        assert row["pypi"] == "langchain-emberd"
        page = row["docs_url"].removeprefix("https://emberd.invalid/").replace(".html", ".md")
        assert (ROOT / page).is_file()


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _texts() -> list[str]:
    return [pages.text_of(f"{LANGCHAIN}/{name}") for name in SECTIONS]


def test_the_notebook_on_embeddings_shows_what_it_stores() -> None:
    path = EMBEDDINGS / "emberd.ipynb"
    stored = notebooks.shown(notebooks.read(path))
    assert [cell for cell, output in stored.items() if not output] == ["install", "server"]
    done = notebooks.run(path)
    assert done.code == 0, done.err
    now = notebooks.shown(done.json)
    assert {cell: now[cell] for cell in stored if not notebooks.same(stored[cell], now[cell])} == {}


def test_the_notebook_on_reranking_runs_and_stores_no_output_of_a_stand_in(
    stand_ins: dict[str, str],
) -> None:
    path = RERANK / "EmberdRerank.ipynb"
    assert set(notebooks.shown(notebooks.read(path)).values()) == {""}
    done = notebooks.run(path, **stand_ins)
    assert done.code == 0, done.err
    now = notebooks.shown(done.json)
    assert len(now["rerank"].splitlines()) == len(now["engine"].splitlines()) == 2


@pytest.mark.parametrize("docs", [EMBEDDINGS, RERANK])
def test_the_metadata_for_llamahub_states_whether_there_is_an_example(docs: Path) -> None:
    project = tomllib.loads((docs.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["llamahub"]["contains_example"] == any(docs.glob("*.ipynb"))


@pytest.mark.parametrize(
    ("page", "package"),
    [
        (EMBEDDINGS / "api_reference.md", llama_index.embeddings.emberd),
        (RERANK / "api_reference.md", llama_index.postprocessor.emberd),
    ],
)
def test_the_page_of_the_reference_lists_what_the_package_has(page: Path, package: object) -> None:
    first, *lines = page.read_text(encoding="utf-8").splitlines()
    assert first == f"::: {getattr(package, '__name__', '')}"
    options = yaml.safe_load("\n".join(lines))
    listed = set(options["options"]["members"])
    assert listed == set(getattr(package, "__all__", ())) - {"guarded"}

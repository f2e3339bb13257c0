"""The documentation site: it builds without warnings, and its links lead somewhere."""

from __future__ import annotations

import ast
import html
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import built_site
from source_tree import PACKAGES, ROOT

pytestmark = pytest.mark.timeout(900)  # the site is built first

DOCS = ROOT / "docs"
# Attributes by which a page makes a browser load something.
LOADED = {
    "script": ["src"],
    "img": ["src", "srcset"],
    "iframe": ["src"],
    "source": ["src", "srcset"],
    "object": ["data"],
    "video": ["src", "poster"],
}


@dataclass
class Page(HTMLParser):
    """What an HTML page links to, loads, and offers as targets."""

    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    without_alt: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect an element."""
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "link" and values.get("rel") in {"stylesheet", "icon", "preload", "preconnect"}:
            self.loads.append(values["href"])
        if tag == "img" and not values.get("alt"):
            self.without_alt.append(values.get("src", ""))
        self.loads += [values[name] for name in LOADED.get(tag, []) if name in values]


@cache
def _read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_site.build(tmp_path_factory.mktemp("site"))


def _pages(site: Path) -> Iterator[tuple[Path, Page]]:
    for path in sorted(site.rglob("*.html")):
        yield path, _read(path)


def test_every_page_is_in_the_site(site: Path) -> None:
    files = [*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")]
    sources = {path.relative_to(DOCS).with_suffix("") for path in files}
    sources = {path for path in sources if path.parts[0] != "_build"}
    assert sources <= {path.relative_to(site).with_suffix("") for path, _ in _pages(site)}


def test_every_page_has_the_heading_of_its_source(site: Path) -> None:
    """A page of Sphinx's own, such as search.html, would take the place of one of ours."""
    for source in DOCS.rglob("*.md"):
        name = source.relative_to(DOCS).with_suffix(".html")
        if name.parts[0] == "_build":
            continue
        heading = source.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        found = re.search("<h1>(.*?)<a", (site / name).read_text(encoding="utf-8"), re.DOTALL)
        assert found, name
        assert html.unescape(re.sub("<[^>]*>", "", found[1])) == heading.replace("`", "")


def test_every_page_can_be_reached_from_the_navigation(site: Path) -> None:
    reached: set[Path] = set()
    to_read = [site / "index.html"]
    while to_read:
        path = to_read.pop()
        if path in reached:
            continue
        reached.add(path)
        for link in _read(path).links:
            parts = urlsplit(link)
            if not parts.scheme and parts.path.endswith(".html"):
                to_read.append((path.parent / unquote(parts.path)).resolve())
    by_other_means = {site / "genindex.html", site / "search.html"}
    assert {path for path, _ in _pages(site)} - reached <= by_other_means


def test_the_reference_describes_every_public_name(site: Path) -> None:
    """Errors have their own page. The adapters' packages are missing here, so they are parsed."""
    public: set[str] = set()
    for name in PACKAGES:
        package = importlib.import_module(name)
        errors = {
            each
            for each in package.__all__
            if isinstance(kind := getattr(package, each), type) and issubclass(kind, Exception)
        }
        public |= set(package.__all__) - errors - {"__version__"}
    for file in (PACKAGES["emberd"] / "adapters").glob("*.py"):
        names = [
            node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)
        ]
        public |= {name for name in names if not name.startswith("_")}
    text = (site / "reference/python.html").read_text(encoding="utf-8")
    described = re.findall(r'<span class="sig-name descname"><span class="pre">(\w+)<', text)
    assert public <= set(described)
    # The fields of a pydantic model are described by their own texts, not by its docstring.
    for description in ("A BaseKVStore; its keys", "Keep the score of the retriever"):
        assert description in text


def test_every_internal_link_leads_to_a_file_and_an_anchor(site: Path) -> None:
    broken = []
    for path, page in _pages(site):
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or link == "#":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            found = target.is_file()
            if found and parts.fragment and target.suffix == ".html":
                found = unquote(parts.fragment) in _read(target).anchors
            if not found:
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


def test_a_link_out_of_the_folder_of_the_documentation_leads_to_a_file_of_the_repository(
    site: Path,
) -> None:
    found = [
        link for _, page in _pages(site) for link in page.links if re.search("/(blob|tree)/", link)
    ]
    ours = [link for link in found if "/emberd/" in link]
    assert len(ours) >= 7
    for link in ours:
        path = urlsplit(link).path.split("/main/", 1)[1]
        assert (ROOT / unquote(path)).exists(), link


def test_the_site_loads_nothing_from_other_hosts(site: Path) -> None:
    loads = [link for _, page in _pages(site) for link in page.loads]
    for path in site.rglob("*.css"):
        text = re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        loads += re.findall(r"url\(['\"]?([^)'\"]+)", text)
        loads += re.findall(r"@import\s+['\"]([^'\"]+)", text)
    assert len(loads) > 100
    assert [link for link in loads if link.startswith(("http:", "https:", "//"))] == []


def test_every_picture_has_a_text(site: Path) -> None:
    assert [name for _, page in _pages(site) for name in page.without_alt] == []

"""The documentation site on a phone, in a light and a dark scheme, and on a desktop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.sync_api import Browser, Page

import built_site

pytestmark = pytest.mark.timeout(900)  # the site is built first, and each page is opened

PHONE: Final[Any] = {"width": 390, "height": 844}
DESKTOP: Final[Any] = {"width": 1280, "height": 800}
# Elements that end outside the window and cannot be scrolled to. The theme hides what overflows.
_CUT: Final = """() => {
    const scrolls = (element) => element.closest("article") &&
        (["auto", "scroll"].includes(getComputedStyle(element).overflowX) ||
            scrolls(element.parentElement));
    return [...document.querySelectorAll("article *")]
        .filter((element) => element.getBoundingClientRect().right > innerWidth)
        .filter((element) => !scrolls(element))
        .map((element) => `${element.tagName} ${element.textContent.slice(0, 40)}`);
}"""
_UNSHOWN_PICTURES: Final = """() => [...document.images]
    .filter((image) => !image.complete || !image.naturalWidth).map((image) => image.src)"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    return built_site.build(tmp_path_factory.mktemp("site"))


@dataclass
class Reader:
    """A tab that reads pages of the site.

    Attributes:
        page: The tab.
        elsewhere: Addresses outside the site that it asked for.
        errors: What the console shows as an error, exceptions of scripts, and failed requests.
    """

    page: Page
    elsewhere: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def watch(self, site: Path) -> None:
        """Record from now on."""
        ours = (site.as_uri(), "data:")
        self.page.on(
            "request",
            lambda asked: None if asked.url.startswith(ours) else self.elsewhere.append(asked.url),
        )
        self.page.on("requestfailed", lambda asked: self.errors.append(asked.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on(
            "console",
            lambda said: self.errors.append(said.text) if said.type == "error" else None,
        )


@pytest.fixture
def reader(browser: Browser, site: Path) -> Iterator[Reader]:
    """A tab of the size of a phone."""
    context = browser.new_context(viewport=PHONE)
    reader = Reader(context.new_page())
    reader.watch(site)
    yield reader
    context.close()


@pytest.mark.parametrize(
    ("size", "schemes"),
    [
        pytest.param(PHONE, ("light", "dark"), id="phone"),
        pytest.param(DESKTOP, ("light",), id="desktop"),
    ],
)
def test_no_page_is_wider_than_the_window_or_asks_elsewhere_or_has_an_error(
    reader: Reader, site: Path, size: Any, schemes: tuple[Any, ...]
) -> None:
    reader.page.set_viewport_size(size)
    cut: dict[str, list[str]] = {}
    unshown: list[str] = []
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    for path in pages:
        reader.page.goto(path.as_uri())
        unshown += reader.page.evaluate(_UNSHOWN_PICTURES)
        for scheme in schemes:
            reader.page.emulate_media(color_scheme=scheme)
            if found := reader.page.evaluate(_CUT):
                cut[f"{path.relative_to(site)} {scheme}"] = found
    assert (cut, unshown, reader.elsewhere, reader.errors) == ({}, [], [], [])


def test_what_is_looked_for_would_be_found(reader: Reader, site: Path) -> None:
    reader.page.goto((site / "index.html").as_uri())
    reader.page.evaluate(
        """() => document.querySelector("article").insertAdjacentHTML("afterbegin",
            '<p style="width: 700px">wide</p><img src="none.svg"><img src="http://127.0.0.1:9/">')"""
    )
    reader.page.wait_for_load_state("networkidle")
    assert reader.page.evaluate(_CUT) == ["P wide"]
    assert len(reader.page.evaluate(_UNSHOWN_PICTURES)) == 2
    assert reader.elsewhere == ["http://127.0.0.1:9/"]
    assert len(reader.errors) >= 2


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_the_recording_stands_still_for_a_reader_who_prefers_less_motion(
    reader: Reader, site: Path, motion: Any
) -> None:
    reader.page.emulate_media(reduced_motion=motion)
    reader.page.goto((site / "index.html").as_uri())
    shown = reader.page.locator("picture img").evaluate("image => image.currentSrc")
    assert Path(shown).name == {"reduce": "session-still.svg"}.get(motion, "session.svg")

"""A real Chromium, and a gateway with a real model and a reranker that records what it is asked."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    Page,
    Playwright,
    Request,
    expect,
    sync_playwright,
)

import managed
from fake_reranker import MODEL as RERANKER
from fake_reranker import FakeReranker
from gateways import Running, serving

stopped_at_the_end = managed.stopped_at_the_end

TIMEOUT_MS: Final = 40_000  # the first ranking starts a server


def chromium() -> str:
    """Return where Chromium is; fail where it is not installed."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    assert found, (
        "Chromium is not installed, and these tests are about the page in a browser. "
        "Run: apt-get install --no-install-recommends chromium"
    )
    return found


def launched(driver: Playwright) -> Browser:
    """Return a new browser."""
    # Chromium refuses to run as root in its sandbox.
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    return driver.chromium.launch(executable_path=chromium(), args=options)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The browser of the session."""
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as driver:
        browser = launched(driver)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def reranker() -> Iterator[FakeReranker]:
    """A reranker whose scores depend on the text in no sensible way."""
    with FakeReranker() as server:
        yield server


@pytest.fixture(scope="session")
def gateway(managed_home: Path, reranker: FakeReranker) -> Iterator[Running]:
    """A gateway with ``emberd/demo`` and the reranker."""
    variables = {"EMBERD_RERANK_BASE_URL": reranker.url, "EMBERD_RERANK_MODEL": RERANKER}
    with serving(managed_home, environment={**variables, "EMBERD_MODEL": managed.MODEL}) as running:
        yield running


@dataclass
class Tab:
    """A tab of the browser with the page, and what it did.

    Attributes:
        page: The page.
        gateway: The gateway that serves it.
        requests: The URLs that it asked for.
        errors: What the console shows as an error, and exceptions of its script.
    """

    page: Page
    gateway: Running
    requests: list[Request] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """Record from now on."""
        # Not the method itself: Playwright keeps an attribute on what it is given.
        self.page.on("request", lambda request: self.requests.append(request))  # noqa: PLW0108
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on(
            "console",
            lambda said: self.errors.append(said.text) if said.type == "error" else None,
        )

    def open(self, key: str | None = None) -> None:
        """Show the page, and enter the key."""
        self.page.goto(f"{self.gateway.url}/")
        self.page.get_by_label("Key", exact=True).fill(self.gateway.key if key is None else key)
        self.page.get_by_role("button", name="Open").click()

    def choose(self, side: str, **values: str) -> None:
        """Choose values of a setting by the ids of its fields."""
        for name, value in values.items():
            control = self.page.locator(f"#{side}-{name}")
            if control.evaluate("control => control.tagName") == "SELECT":
                control.select_option(value)
            else:
                control.fill(value)

    def rank(self, query: str | None = None, texts: list[str] | None = None) -> None:
        """Rank, and wait for the result."""
        if query is not None:
            self.page.get_by_label("Query", exact=True).fill(query)
        if texts is not None:
            self.page.get_by_label("Texts", exact=True).fill("\n".join(texts))
        self.page.get_by_role("button", name="Rank", exact=True).click()
        self.finished()

    def finished(self) -> None:
        """Wait until the ranking is shown."""
        expect(self.page.locator("#status")).to_have_text("Done.")

    def rows(self) -> list[dict[str, str]]:
        """Return the cells of the ranking by their heads."""
        rows: list[dict[str, str]] = self.page.evaluate(
            """() => [...document.querySelectorAll("#ranking tbody tr")].map((row) =>
                Object.fromEntries([...row.cells].map((cell) =>
                    [cell.dataset.label, cell.innerText.trim()])))"""
        )
        return rows

    def order(self) -> list[int]:
        """Return the numbers of the texts in the order of the ranking, from 0."""
        return [int(row["Text"].split()[1]) - 1 for row in self.rows()]


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser without history."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    context.set_default_timeout(TIMEOUT_MS)
    yield context
    context.close()


@pytest.fixture
def tab(context: BrowserContext, gateway: Running) -> Iterator[Tab]:
    """A separate tab, which asked for nothing elsewhere and had no error at the end."""
    tab = Tab(context.new_page(), gateway)
    tab.watch()
    yield tab
    elsewhere = [each.url for each in tab.requests if not each.url.startswith(f"{gateway.url}/")]
    assert elsewhere in ([], ["data:,"]), elsewhere
    assert tab.errors == []


@pytest.fixture
def opened(tab: Tab) -> Tab:
    """A tab in which the key is entered."""
    tab.open()
    expect(tab.page.locator("#app")).to_be_visible()
    return tab


def vectors(gateway: Running, texts: list[str], **body: Any) -> np.ndarray[Any, Any]:
    """Return what the gateway answers for texts."""
    body = {"model": "demo", "input": texts, "encoding_format": "base64", **body}
    reply = gateway.post(**body)
    assert reply.status_code == 200, reply.text
    return np.array(
        [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in reply.json()["data"]]
    )


def expected(gateway: Running, query: str, texts: list[str], **body: Any) -> list[int]:
    """Return the order of texts for a query, by vectors of the gateway."""
    only = {name: value for name, value in body.items() if name == "dimensions"}
    asked = vectors(gateway, [query], **{"input_type": "query", **body})
    scores = vectors(gateway, texts, input_type="document", **only) @ asked[0]
    return [int(place) for place in np.argsort(-scores, kind="stable")]

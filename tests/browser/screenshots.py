"""Makes pictures for docs/serve.md: ``PYTHONPATH=tests python -m browser.screenshots FOLDER``."""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from PIL import Image
from playwright.sync_api import Page, sync_playwright

import emberd
from browser.conftest import launched
from gateways import Running, serving

WIDTH: Final = 1120
# Name -> the width of the window, the scheme, the question, and the first element shown.
PICTURES: Final[dict[str, tuple[int, Any, str, str]]] = {
    "page-settings": (WIDTH, "light", "prompt", "header"),
    "page-ranking": (WIDTH, "light", "prompt", "#results"),
    "page-dark": (WIDTH, "dark", "dimensions", "#ranking-title"),
    "page-phone": (390, "light", "prompt", "#results"),
}


def main(folder: Path) -> None:
    """Write the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="emb-") as place:
        home = Path(place) / "home"
        try:
            with serving(home, "emberd/demo") as running, sync_playwright() as driver:
                browser = launched(driver)
                for name, (width, scheme, question, shown) in PICTURES.items():
                    page = browser.new_page(
                        viewport={"width": width, "height": 900}, color_scheme=scheme
                    )
                    _ranked(page, running, question)
                    _write(page, folder / f"{name}.png", shown)
                    page.close()
                browser.close()
        finally:
            emberd.Manager(home).stop()


def _ranked(page: Page, running: Running, question: str) -> None:
    page.goto(running.url)
    page.locator("#key").fill(running.key)
    page.get_by_role("button", name="Open").click()
    page.locator(f"[data-question={question}]").click()
    page.locator("#rank").click()
    page.get_by_text("Done.", exact=True).wait_for(timeout=60_000)


def _write(page: Page, file: Path, shown: str) -> None:
    page.evaluate("scrollTo(0, 0)")
    box = page.locator(shown).bounding_box()
    assert box
    whole = page.screenshot(full_page=True)
    picture = Image.open(io.BytesIO(whole)).convert("RGB")
    top = max(0, int(box["y"]) - 12)
    end = top + int(picture.width * (2.2 if picture.width < WIDTH else 1.05))
    cut = picture.crop((0, top, picture.width, min(picture.height, end)))
    cut.quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f"{file}: {file.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The plots of docs/performance.md are drawn from the figures in its tables."""

from __future__ import annotations

import re
import runpy
from typing import Any, Final

import pytest

from source_tree import ROOT

DOCS: Final = ROOT / "docs"
PLOTTER: Final = runpy.run_path(str(DOCS / "images/plot.py"))
PLOTS: Final[dict[str, Any]] = PLOTTER["plots"]()
_PAGE: Final = (DOCS / "performance.md").read_text(encoding="utf-8")


def _section(heading: str) -> str:
    return _PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("`", "") for cell in line.strip().strip("|").split("|")]


def _value(cell: str) -> float | str | None:
    if not cell:
        return None
    return float(cell.replace(",", "")) if re.fullmatch(r"[\d.,]+", cell) else cell


def _rows(plot: Any) -> list[list[float | str | None]]:
    """Return the rows of a plot's table before the first one of ratios or sums."""
    lines = _section(plot.heading).splitlines()
    [head] = [
        place
        for place, line in enumerate(lines)
        if line.startswith("|") and _cells(line) == plot.columns
    ]
    rows = []
    for line in lines[head + 2 :]:
        if not line.startswith("|") or "**" in line:
            break
        rows.append([_value(cell) for cell in _cells(line)])
    return rows


@pytest.mark.parametrize("name", list(PLOTS))
def test_the_data_of_a_plot_are_the_rows_of_its_table(name: str) -> None:
    assert PLOTS[name].rows == _rows(PLOTS[name])


@pytest.mark.parametrize("name", list(PLOTS))
def test_a_drawing_is_up_to_date(name: str) -> None:
    """If not: ``python docs/images/plot.py``."""
    drawing = (DOCS / f"images/plot-{name}.svg").read_text(encoding="utf-8")
    assert drawing == PLOTTER["draw"](PLOTS[name])


@pytest.mark.parametrize("name", list(PLOTS))
def test_a_plot_shows_its_figures_for_light_and_dark_pages(name: str) -> None:
    plot = PLOTS[name]
    drawing = (DOCS / f"images/plot-{name}.svg").read_text(encoding="utf-8")
    texts = re.findall(r"<text [^>]*>([^<]*)</text>", drawing)
    assert {row[0] for row in plot.rows} <= set(texts)
    sums = (sum(row[place] for row in plot.rows) for place in range(1, len(plot.columns)))
    figures = [row[plot.shown] for row in plot.rows] if plot.shown else sums
    shown = {float(text.replace(",", "")) for text in texts if re.fullmatch(r"[\d.,]+", text)}
    assert shown == {round(figure, 4) for figure in figures}
    assert "prefers-color-scheme:dark" in drawing
    assert "#0000" not in drawing


def test_each_plot_is_in_the_section_of_its_table() -> None:
    for name, plot in PLOTS.items():
        found = re.findall(
            rf"!\[([^]]*)\]\(images/plot-{name}\.svg\)", _section(plot.heading), re.DOTALL
        )
        assert len(found) == 1, name
        assert len(found[0]) > 40, "the text says what the plot shows"
    drawn = {path.stem.removeprefix("plot-") for path in (DOCS / "images").glob("plot-*.svg")}
    assert drawn == set(PLOTS)


def test_the_figures_of_the_readme_are_those_of_the_table_that_it_links_to() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [paragraph] = [text for text in readme.split("\n\n") if "performance.md#a-real" in text]
    quoted = {float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\d", paragraph)}
    measured = {row[1] for name in ("concurrent", "real-bulk") for row in PLOTS[name].rows}
    assert len(quoted) == 5
    assert quoted - measured == {512}, "the number of queries"

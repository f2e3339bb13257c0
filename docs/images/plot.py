"""Draws the plots of docs/performance.md from plots.json: ``python docs/images/plot.py``.

plots.json holds the rows of the page's tables; ``tests/test_plots.py`` compares the two, and the
drawings with what this program draws. A table that changes is changed in both places.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FOLDER: Final = Path(__file__).parent
DATA: Final = FOLDER / "plots.json"

# Colours that matplotlib is given -> the name of the variable, its light and its dark value.
_COLOURS: Final = {
    "#000001": ("text", "#1c2733", "#e6ebf1"),
    "#000002": ("note", "#4d5966", "#b9c3ce"),
    "#000003": ("ours", "#37804a", "#6fbf85"),
    "#000004": ("theirs", "#9aa5b1", "#6b7785"),
    "#000005": ("back", "#ffffff", "#131416"),
    "#000006": ("phase-1", "#4a6fa5", "#7aa2dc"),
    "#000007": ("phase-2", "#37804a", "#6fbf85"),
    "#000008": ("phase-3", "#b7791f", "#e0b050"),
    "#000009": ("phase-4", "#8e5aa8", "#c79be0"),
    "#00000a": ("phase-5", "#b04848", "#dc8a8a"),
    "#00000b": ("phase-6", "#6b7785", "#a3afbd"),
}
_TEXT, _NOTE, _OURS, _THEIRS, _BACK, *_PHASES = _COLOURS
_OUR_NAMES: Final = re.compile("[Ee]mberd|Embedder|Reranker")

# In points, which become pixels: narrow, so that a phone shows the letters nearly at their size.
_WIDTH: Final = 440
_MARGIN: Final = 14
_FONT_SIZE: Final = 13
_HEAD: Final = 52
_ROW: Final = 40
_STACK_ROW: Final = 62
_LEGEND_ROW: Final = 20


@dataclass(frozen=True)
class Plot:
    """A table of the page, and how it is drawn.

    Attributes:
        title: Of the drawing.
        note: The unit, and which direction is better.
        heading: Of the section of the page.
        columns: The heads of the table's columns.
        rows: The rows of the table that have figures, each a name and a number for each column.
        shown: The column that the bars show; 0 if each column is a bar, with a part for each row.
        low: The column where a bar's range begins; the next but one is its end. 0: no range.
    """

    title: str
    note: str
    heading: str
    columns: list[str]
    rows: list[list[Any]]
    shown: int = 0
    low: int = 0


def plots() -> dict[str, Plot]:
    """Return the plots of the data file by name."""
    content = json.loads(DATA.read_text(encoding="utf-8"))
    return {name: Plot(**plot) for name, plot in content.items()}


def draw(plot: Plot) -> str:
    """Return a plot as SVG."""
    text = io.StringIO()
    facts = {"Date": None, "Creator": None, "Title": plot.title}
    with mpl.rc_context(
        {
            "svg.fonttype": "none",  # letters, not their outlines
            "svg.hashsalt": "emberd",  # the same names in each run
            "font.size": _FONT_SIZE,
            "text.color": _TEXT,
        }
    ):
        drawn = _bars(plot) if plot.shown else _stacks(plot)
        drawn.savefig(text, format="svg", metadata=facts)
    return _with_schemes(text.getvalue())


def _bars(plot: Plot) -> Figure:
    """Draw a bar for each row, under its name."""
    values = [float(row[plot.shown]) for row in plot.rows]
    ends = [float(row[plot.low + 2]) for row in plot.rows] if plot.low else values
    figure, axes = _canvas(plot, _ROW * len(values), longest=max(ends) * 1.16)
    for place, (row, value, end) in enumerate(zip(plot.rows, values, ends, strict=True)):
        top = _ROW * place
        ours = _OUR_NAMES.search(row[0])
        axes.barh(top + 27, value, 13, color=_OURS if ours else _THEIRS)
        axes.text(0, top + 15, row[0], fontweight="bold" if ours else "normal")
        if plot.low:
            axes.plot([row[plot.low], end], [top + 27] * 2, color=_TEXT, linewidth=1.5)
        axes.annotate(f"{row[plot.shown]:,}", (end, top + 32), (5, 0), textcoords="offset points")
    return figure


def _stacks(plot: Plot) -> Figure:
    """Draw a bar for each column, of one part for each row."""
    names = plot.columns[1:]
    height = _STACK_ROW * len(names) + _LEGEND_ROW * len(plot.rows) + 6
    sums = [sum(row[place] for row in plot.rows) for place in range(1, len(plot.columns))]
    figure, axes = _canvas(plot, height, longest=max(sums) * 1.16)
    for place, (name, whole) in enumerate(zip(names, sums, strict=True)):
        top, begin = _STACK_ROW * place, 0.0
        axes.text(0, top + 15, name)
        for row, colour in zip(plot.rows, _PHASES, strict=True):
            axes.barh(top + 34, row[place + 1], 26, left=begin, color=colour)
            begin += row[place + 1]
        axes.annotate(f"{whole:.1f}", (whole, top + 39), (5, 0), textcoords="offset points")
    top = _STACK_ROW * len(names) + 4
    unit = max(sums) * 1.16 / (_WIDTH - 2 * _MARGIN)
    for place, (row, colour) in enumerate(zip(plot.rows, _PHASES, strict=True)):
        axes.barh(top + _LEGEND_ROW * place + 10, 12 * unit, 12, color=colour)
        axes.text(19 * unit, top + _LEGEND_ROW * place + 15, row[0])
    return figure


def _canvas(plot: Plot, height: int, longest: float) -> tuple[Figure, Axes]:
    """Return a figure with a title, and axes in which a vertical unit is a pixel."""
    whole = _HEAD + height + _MARGIN
    figure = Figure(figsize=(_WIDTH / 72, whole / 72), dpi=72, facecolor=_BACK)
    left, width = _MARGIN / _WIDTH, 1 - 2 * _MARGIN / _WIDTH
    axes = figure.add_axes((left, _MARGIN / whole, width, height / whole))
    axes.set_axis_off()
    axes.set_xlim(0, longest)
    axes.set_ylim(height, 0)
    figure.text(left, 1 - 24 / whole, plot.title, fontsize=15, fontweight="bold")
    figure.text(left, 1 - 42 / whole, plot.note, color=_NOTE)
    return figure, axes


def _with_schemes(drawing: str) -> str:
    """Return a drawing of matplotlib with colours for light and dark pages."""
    for colour, (name, _, _) in _COLOURS.items():
        drawing = drawing.replace(colour, f"var(--{name})")
    light, dark = (
        ";".join(f"--{each[0]}:{each[side]}" for each in _COLOURS.values()) for side in (1, 2)
    )
    style = f"<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    drawing = re.sub(r'(<svg [^>]*)width="(\d+)pt"', r'\1width="\2"', drawing)
    drawing = re.sub(r'(<svg [^>]*)height="(\d+)pt"', r'\1height="\2"', drawing)
    drawing = re.sub(r"<!DOCTYPE.*?>\n|<metadata>.*?</metadata>\n", "", drawing, flags=re.DOTALL)
    drawing = drawing.replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans'")
    return re.sub("<defs>", f"{style}\n <defs>", drawing, count=1)


def main() -> None:
    """Write the drawings."""
    for name, plot in plots().items():
        (FOLDER / f"plot-{name}.svg").write_text(draw(plot), encoding="utf-8")


if __name__ == "__main__":
    main()

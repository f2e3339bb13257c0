"""What a benchmark found: printed as a table, kept as JSON, and drawn, under ``.benchmarks``.

A benchmark makes a ``Table`` of its figures and of the ratios that they give, and hands it to
``publish``. A ratio that has a target says whether it was met, and fails nothing.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).resolve().parents[2] / ".benchmarks"

_BAR_INCHES: Final = 0.4
_AROUND_BARS_INCHES: Final = 1.3
_WIDTH_INCHES: Final = 9.0
_CPUINFO: Final = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table.

    Attributes:
        name: What was measured.
        figures: Its figures, one for each column that it has one in.
    """

    name: str
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Ratio:
    """One figure by another of the same run, or any other figure that there is a target for.

    Attributes:
        name: What is compared with what.
        value: The figure.
        target: What it should be at least, or at most; None where there is no target.
        at_most: Whether less is better.
        unit: What the value is in; a ratio is in none.
    """

    name: str
    value: float
    target: float | None = None
    at_most: bool = False
    unit: str = ""

    @property
    def verdict(self) -> str:
        """How the value stands to its target, in words."""
        if self.target is None:
            return ""
        met = self.value <= self.target if self.at_most else self.value >= self.target
        bound = "at most" if self.at_most else "at least"
        return f"{bound} {self.target:g}{self.unit}: {'met' if met else 'MISSED'}"


@dataclass(frozen=True, slots=True)
class Table:
    """What one benchmark found.

    Attributes:
        name: Of the files, such as ``throughput-base64``.
        title: What was done, to how much, and how often.
        rows: The figures.
        ratios: What follows from them.
        packages: Distributions whose versions matter, beside emberd.
        notes: What a reader has to know, a sentence each.
    """

    name: str
    title: str
    rows: Sequence[Row]
    ratios: Sequence[Ratio] = ()
    packages: Sequence[str] = ()
    notes: Sequence[str] = field(default_factory=tuple)


def publish(table: Table, folder: Path = FOLDER) -> None:
    """Print ``table``, and write it to ``folder`` as JSON and as a plot."""
    folder.mkdir(exist_ok=True)
    found = environment(table.packages)
    print(f"\n{as_text(table)}\n  {_in_one_line(found)}")
    kept = {
        **asdict(table),
        "ratios": [{**asdict(ratio), "verdict": ratio.verdict} for ratio in table.ratios],
        "environment": found,
    }
    (folder / f"{table.name}.json").write_text(json.dumps(kept, indent=2) + "\n")
    _draw(table, folder / f"{table.name}.png")


def as_text(table: Table) -> str:
    """Return ``table`` as plain text."""
    columns = list(dict.fromkeys(column for row in table.rows for column in row.figures))
    names = [*(row.name for row in table.rows), *(ratio.name for ratio in table.ratios)]
    width = max(map(len, names), default=0)
    spaces = [max(len(column), 9) for column in columns]
    head = "  ".join(f"{column:>{space}}" for column, space in zip(columns, spaces, strict=True))
    lines = [table.title, f"  {'':<{width}}  {head}"]
    for row in table.rows:
        cells = [f"{_cell(row.figures.get(c)):>{s}}" for c, s in zip(columns, spaces, strict=True)]
        lines.append(f"  {row.name:<{width}}  {'  '.join(cells)}")
    for ratio in table.ratios:
        value = f"{ratio.value:.3g}{ratio.unit}"
        lines.append(f"  {ratio.name:<{width}}  {value:>9}  {ratio.verdict}".rstrip())
    return "\n".join([*lines, *(f"  {note}" for note in table.notes)])


def environment(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Return the machine, the interpreter, the versions of emberd and ``packages``, and the day."""
    names = sorted({"emberd", *packages})
    return {
        "cpu": _cpu(),
        "cores": os.process_cpu_count() if hasattr(os, "process_cpu_count") else os.cpu_count(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {name: metadata.version(name) for name in names},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _in_one_line(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"{found['date']}, {found['cpu']}, {found['cores']} cores, Python {found['python']}; "
        f"{versions}"
    )


def _cpu() -> str:
    if _CPUINFO.exists():
        for line in _CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cell(figure: float | None) -> str:
    if figure is None:
        return ""
    return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:.3g}"


def _draw(table: Table, path: Path) -> None:
    """Draw the ratios as bars; where there are none, the first column of the figures."""
    # Imported at first use: a table can be made where there is no matplotlib.
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    bars = _bars(table)
    height = _BAR_INCHES * len(bars) + _AROUND_BARS_INCHES
    figure, axes = plt.subplots(figsize=(_WIDTH_INCHES, height))
    places = range(len(bars))
    drawn = axes.barh(places, [value for _, value, _ in bars], color="tab:blue", height=0.6)
    axes.bar_label(drawn, fmt=_cell, padding=3)
    for place, (_, _, target) in zip(places, bars, strict=True):
        if target is not None:
            axes.plot([target, target], [place - 0.45, place + 0.45], color="tab:red")
    axes.set_yticks(places, [name for name, _, _ in bars])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title(f"{table.title}\n(red: the target)", fontsize="medium", wrap=True)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _bars(table: Table) -> list[tuple[str, float, float | None]]:
    if table.ratios:
        return [(ratio.name, ratio.value, ratio.target) for ratio in table.ratios]
    return [(row.name, next(iter(row.figures.values()), 0.0), None) for row in table.rows]


def in_turn(
    calls: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Time each call ``rounds`` times, A B A B, after one round that does not count.

    Args:
        calls: Name to what is timed.
        rounds: How often each is timed.
        clock: Such as ``time.perf_counter``.

    Returns:
        Name to its times, in the unit of the clock.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            began = clock()
            kept = call()
            times[name].append(clock() - began)
            del kept  # letting go of millions of floats is not part of the next one's time
    return {name: taken[1:] for name, taken in times.items()}

"""What a part of the run found: its kind, its figures, and the file that both are kept in."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final


class Kind(StrEnum):
    """How a part ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


class Why(StrEnum):
    """Why a part was skipped."""

    NOT_HERE = "not here"
    """This device cannot show it, or it was not asked for."""
    NOT_RUN = "not run"
    """It should have run: no time was left, or what it needs was not made."""


class SkippedError(Exception):
    """A part cannot be run; the text says why.

    Args:
        reason: Why not.
        why: Whether it should have been.
    """

    def __init__(self, reason: str, why: Why = Why.NOT_RUN) -> None:
        super().__init__(reason)
        self.why = why


@dataclass(frozen=True, slots=True)
class Result:
    """How a part ended.

    Attributes:
        name: The part's.
        kind: Passed, failed or skipped.
        summary: Its result in one line; for the other kinds, the reason.
        seconds: How long it took.
        limit_s: How long it was given.
        figures: What it measured, also when it failed.
        why: Why it was skipped; None where it was not.
        detail: The end of what it printed, where it failed.
    """

    name: str
    kind: Kind
    summary: str
    seconds: float = 0.0
    limit_s: float = 0.0
    figures: Mapping[str, Any] = field(default_factory=dict)
    why: Why | None = None
    detail: str = ""

    @property
    def line(self) -> str:
        """The line that is printed when the part ends."""
        return f"{self.kind:<7}  {self.name:<14}  {self.seconds:6.1f} s  {self.summary}"

    def as_content(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return asdict(self)


class Report:
    """Takes what a part finds. All of it is in the part's file at once: a part may be killed.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.figures: dict[str, Any] = {}
        self.problems: list[str] = []
        self.summary = ""
        self.skipped = ""
        self.why = Why.NOT_RUN
        self.ended = False

    def figure(self, name: str, value: Any) -> None:
        """Keep a figure: a number with its unit in the name, a text, or a list or dict of them."""
        self.figures[name] = value
        self.write()

    def require(self, ok: bool, problem: str) -> None:
        """Keep ``problem`` unless ``ok``; the part goes on, and fails at its end."""
        if not ok:
            self.problems.append(problem)
            self.write()

    def write(self) -> None:
        """Write all of it to the file."""
        names = ("figures", "problems", "summary", "skipped", "why", "ended")
        write_json(self._path, {name: getattr(self, name) for name in names})


def write_json(path: Path, content: Any) -> None:
    """Replace a file by JSON, as a whole."""
    fresh = path.with_name(f"{path.name}.tmp")
    fresh.write_text(json.dumps(content, indent=1, default=_plain) + "\n", encoding="utf-8")
    os.replace(fresh, path)


def read_json(path: Path) -> Any:
    """Return what a JSON file holds; an empty dict where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _plain(value: Any) -> Any:
    # NumPy's numbers have item(); no other kinds occur.
    return value.item()


_NAME: Final = "part"


def table(results: list[Result]) -> str:
    """Return all results as a table in Markdown."""
    rows = [(r.name, str(r.kind), f"{r.seconds:.1f}", r.summary.replace("|", "/")) for r in results]
    heads = (_NAME, "result", "s", "what was found")
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(3)]
    lines = [_row(heads, widths), _row(("---",) * 4, widths), *(_row(row, widths) for row in rows)]
    return "\n".join(lines)


def _row(cells: tuple[str, ...], widths: list[int]) -> str:
    padded = [f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=False)]
    return f"| {' | '.join(padded)} | {cells[-1]} |"

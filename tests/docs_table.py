"""A table in the documentation that is generated, and held by a test."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from source_tree import ROOT


@dataclass(frozen=True)
class DocsTable:
    """A table between two comments of a page.

    Attributes:
        page: Name of the page in ``docs``.
        what: What the comments name.
        titles: Titles of the columns.
    """

    page: str
    what: str
    titles: Sequence[str]

    def has(self, rows: Iterable[Sequence[str]]) -> bool:
        """Return whether the page has these rows."""
        text = self._path.read_text(encoding="utf-8")
        return text == self._with(text, rows)

    def write(self, rows: Iterable[Sequence[str]]) -> None:
        """Replace the rows of the page by these."""
        text = self._path.read_text(encoding="utf-8")
        self._path.write_text(self._with(text, rows), encoding="utf-8")

    @property
    def _path(self) -> Path:
        return ROOT / "docs" / self.page

    def _with(self, text: str, rows: Iterable[Sequence[str]]) -> str:
        begin, end = f"<!-- {self.what} -->", f"<!-- end of {self.what} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"{self.page} has no {begin} with an {end} after it")
        cells = [self.titles, ["---"] * len(self.titles), *rows]
        lines = [f"| {' | '.join(row)} |" for row in cells]
        return "\n".join([before + begin, *lines, end + after])

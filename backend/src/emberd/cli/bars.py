"""Progress bars with the speed in texts per second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from emberd.cli import words

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Task

_BAR_COLUMNS: Final = 24


class _Speed(ProgressColumn):
    """Texts per second since the task began: windows are too coarse for rich's own estimate."""

    def render(self, task: Task) -> Text:
        """Return the speed of ``task``."""
        seconds = task.finished_time if task.finished else task.elapsed
        if not seconds or not task.completed:
            return Text("")
        return Text(f"{task.completed / seconds:.0f} {task.fields.get('unit', 'texts')}/s")


class _Rows(ProgressColumn):
    """How many rows this run has done, and how many a second."""

    def render(self, task: Task) -> Text:
        """Return both for ``task``."""
        rows = task.fields.get("rows", 0)
        seconds = task.finished_time if task.finished else task.elapsed
        if not seconds or not rows:
            return Text("")
        return Text(f"{rows:,} rows, {rows / seconds:.0f}/s")


class _Left(ProgressColumn):
    """How long it still takes, at the speed that this run has had so far.

    What an earlier run has done stands in the bar, and does not count for the speed.
    """

    def render(self, task: Task) -> Text:
        """Return the time left of ``task``."""
        here = task.completed - task.fields.get("before", 0)
        if not task.elapsed or here <= 0 or task.total is None:
            return Text("")
        return Text(f"{words.duration((task.total - task.completed) * task.elapsed / here)} left")


def bulk_progress(console: Console) -> Progress:
    """Return a progress display on ``console`` for work that an earlier run may have begun.

    Tasks name the ``rows`` that this run has done, and how much was done ``before`` it.

    Args:
        console: Where to write.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=_BAR_COLUMNS),
        TaskProgressColumn(),
        _Rows(),
        _Left(),
        TimeElapsedColumn(),
        console=console,
    )


def progress(console: Console, *, shown: bool = True) -> Progress:
    """Return a progress display on ``console``; tasks may name their ``unit``.

    Args:
        console: Where to write.
        shown: Whether to write anything.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=_BAR_COLUMNS),
        MofNCompleteColumn(),
        _Speed(),
        TimeElapsedColumn(),
        console=console,
        disable=not shown,
    )

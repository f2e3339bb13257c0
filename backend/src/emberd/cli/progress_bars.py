"""Progress bars for texts and for bulk jobs."""

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

from emberd.cli import output

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Task

_BAR_COLUMNS: Final = 24


class _Speed(ProgressColumn):
    """Speed since the start of the task: updates are too rare for the estimate of rich."""

    def render(self, task: Task) -> Text:
        """Return the speed of ``task``, and for bulk jobs the rows of this run."""
        rows = task.fields.get("rows")
        count = task.completed if rows is None else rows
        seconds = task.finished_time if task.finished else task.elapsed
        if not seconds or not count:
            return Text("")
        speed = f"{count / seconds:.0f}"
        if rows is None:
            return Text(f"{speed} {task.fields.get('unit', 'texts')}/s")
        return Text(f"{rows:,} rows, {speed}/s")


class _TimeLeft(ProgressColumn):
    """Time left at the speed of this run: ``before`` is what earlier runs did."""

    def render(self, task: Task) -> Text:
        """Return the time left of ``task``."""
        done = task.completed - task.fields.get("before", 0)
        if not task.elapsed or done <= 0 or task.total is None:
            return Text("")
        return Text(f"{output.duration((task.total - task.completed) * task.elapsed / done)} left")


def bulk_progress(console: Console) -> Progress:
    """Return a progress display for jobs that an earlier run may have begun.

    Tasks have the fields ``rows``, done by this run, and ``before``, done by earlier runs.

    Args:
        console: Where to write.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=_BAR_COLUMNS),
        TaskProgressColumn(),
        _Speed(),
        _TimeLeft(),
        TimeElapsedColumn(),
        console=console,
    )


def text_progress(console: Console, *, shown: bool = True) -> Progress:
    """Return a progress display for texts; tasks may have a field ``unit``.

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

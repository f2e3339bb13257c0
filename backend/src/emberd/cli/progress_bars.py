"""Progress bars for texts and for bulk jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

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


class _Speed(ProgressColumn):
    """Speed since the start of the task: updates are too rare for the estimate of rich."""

    def render(self, task: Task) -> Text:
        """Return the speed of ``task``, and for bulk jobs the rows of this run."""
        rows = task.fields.get("rows")
        count = task.completed if rows is None else rows
        seconds = task.finished_time if task.finished else task.elapsed
        if not seconds or not count:
            return Text("")
        speed = output.rate(count / seconds)
        return Text(f"{speed} texts/s" if rows is None else f"{rows:,} rows, {speed}/s")


class _TimeLeft(ProgressColumn):
    """Time left at the speed of this run: ``before`` is what earlier runs did."""

    def render(self, task: Task) -> Text:
        """Return the time left of ``task``."""
        done = task.completed - task.fields.get("before", 0)
        if not task.elapsed or done <= 0 or task.total is None:
            return Text("")
        return Text(f"{output.duration((task.total - task.completed) * task.elapsed / done)} left")


def bulk_progress(console: Console) -> Progress:
    """Return a progress display on ``console`` for jobs that an earlier run may have begun.

    Tasks have the fields ``rows``, done by this run, and ``before``, done by earlier runs.
    """
    return _progress(console, TaskProgressColumn(), _Speed(), _TimeLeft())


def text_progress(console: Console) -> Progress:
    """Return a progress display on ``console`` for texts."""
    return _progress(console, MofNCompleteColumn(), _Speed())


def _progress(console: Console, *columns: ProgressColumn) -> Progress:
    bar = (TextColumn("{task.description}"), BarColumn(bar_width=24))
    return Progress(*bar, *columns, TimeElapsedColumn(), console=console)

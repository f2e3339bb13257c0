"""Progress bars with the speed in texts per second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

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

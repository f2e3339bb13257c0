"""What the bars tell."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from emberd.cli import progress_bars


def test_the_speed_of_what_is_finished_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    console = Console(file=io.StringIO(), width=120)
    display = progress_bars.bulk_progress(console)
    monkeypatch.setattr(display, "get_time", lambda: now_s)
    task = display.add_task("embedding", total=100)
    monkeypatch.setattr(display.tasks[0], "_get_time", lambda: now_s)
    now_s = 2.0
    display.update(task, completed=100, rows=1000)
    now_s = 8.0
    console.print(display.get_renderable())
    assert isinstance(console.file, io.StringIO)
    assert "1,000 rows, 500/s" in console.file.getvalue()

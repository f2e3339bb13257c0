"""Waiting for something to become true, with a deadline and a clear failure."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
POLL_S = 0.02
# Only failing tests reach it; a loaded machine may need most of it.
DEADLINE_S = 30.0


def remove(folder: Path) -> None:
    """Remove a folder, even if a supervisor restores a file in it concurrently."""

    def is_gone() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    until(is_gone)


def until(condition: Callable[[], T], seconds: float = DEADLINE_S, *, poll_s: float = POLL_S) -> T:
    """Return the first true value of ``condition``; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"still {value!r} after {seconds} s")
        time.sleep(poll_s)
    return value

"""Lines of progress while one long call is under way that says nothing itself."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Final

_EVERY_S: Final = 2.0
_GB: Final = 1e9

_log = logging.getLogger("emberd.serving")


@contextlib.contextmanager
def telling(step: str, done_bytes: Callable[[], int], all_bytes: int | None) -> Iterator[None]:
    """Log how far ``step`` is, at its beginning and whenever it got further.

    A line only when the figure moved: a log that stands still is how a start that hangs is known.

    Args:
        step: What is being done, such as ``"loading the weights"``.
        done_bytes: Asked from another thread; bytes since some time before the step.
        all_bytes: How many there will be; None when nobody knows.
    """
    ended = threading.Event()
    thread = threading.Thread(
        target=_tell, args=(step, done_bytes, all_bytes, ended), daemon=True, name="progress"
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _tell(
    step: str, done_bytes: Callable[[], int], all_bytes: int | None, ended: threading.Event
) -> None:
    began, told = done_bytes(), ""
    while True:
        figure = _figure(max(0, done_bytes() - began), all_bytes)
        if figure != told:
            told = figure
            _log.info("%s (%s)", step, figure)
        if ended.wait(_EVERY_S):
            return


def _figure(done_bytes: int, all_bytes: int | None) -> str:
    if all_bytes is None:
        return f"{done_bytes / _GB:.1f} GB"
    return f"{min(done_bytes, all_bytes) / _GB:.1f} of {all_bytes / _GB:.1f} GB"

"""Decides whether a server hangs: its process runs, but does not answer.

A server whose process has ended is noticed by ``supervisor``, its parent.

Clients report a request that timed out; the supervisor then asks the model for a token. A server
counts as hung only after several such probes in a row have failed while its own counters stood
still: from outside, one long request looks the same as many.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Final

from emberd.errors import EmberdError
from emberd.manager import paths
from emberd.probe import Activity
from emberd.system import background

_NAME: Final = "suspect"


def report_unresponsive(folder: str) -> None:
    """Report that the server of ``folder`` did not answer in time."""
    with suppress(OSError):
        (Path(folder) / _NAME).touch(mode=0o600)


class HealthMonitor:
    """Probes a reported server, one probe at a time, without blocking its supervisor."""

    def __init__(
        self, folder: Path, probe: Callable[[], bool], failures_needed: int, probe_s: float
    ) -> None:
        """Watch ``folder`` for reports.

        Args:
            folder: The server's state folder.
            probe: Requests a real answer from the model; may take long.
            failures_needed: Failed probes in a row after which the server counts as hung.
            probe_s: Minimum time between a probe's start and its evaluation, in seconds: a server
                that refuses at once must get as long to make progress as one that does not answer.
        """
        self._file = folder / _NAME
        self._probe = probe
        self._failures_needed = failures_needed
        self._probe_s = probe_s
        self._began_s = 0.0
        self._failures = 0
        self._before: Activity | None = None
        self._running: Future[bool] | None = None
        self._clear()

    @property
    def is_active(self) -> bool:
        """Whether the server was reported, or a probe is in progress."""
        return self._running is not None or self._file.exists()

    def is_hung(self, activity: Activity | None) -> bool:
        """Take a reading of the counters, start or evaluate a probe, and return the verdict."""
        if self._running is None:
            if self._file.exists():
                self._before = activity
                self._began_s = time.monotonic()
                with suppress(EmberdError):  # no thread is free: tried again at the next reading
                    self._running = background.run(self._probe, "health-probe")
        elif self._running.done() and time.monotonic() - self._began_s >= self._probe_s:
            before = self._before
            has_moved = (
                activity is not None
                and before is not None
                and (activity.requests, activity.tokens) != (before.requests, before.tokens)
            )
            if has_moved or (self._running.exception() is None and self._running.result()):
                self._failures = 0
                self._clear()
            else:
                self._failures += 1
            self._running = None
        return self._failures >= self._failures_needed

    def _clear(self) -> None:
        # Whatever has the name: a directory there must not end the supervisor.
        with suppress(OSError):
            paths.remove(self._file)

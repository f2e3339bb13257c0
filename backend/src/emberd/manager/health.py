"""Whether a server that still runs has stopped working.

Clients report a request that timed out; the supervisor then asks the model for a token. A server is
given up only after several such probes have failed in a row while its own counters stood still:
one long request, or many, look the same from outside.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from emberd.manager import paths
from emberd.probe import Activity

_NAME: Final = "suspect"


def report(folder: str) -> None:
    """Report that the server of ``folder`` did not answer in time."""
    with suppress(OSError):
        (Path(folder) / _NAME).touch(mode=0o600)


class Suspicion:
    """Probes a reported server, one probe at a time, without holding up its supervisor."""

    def __init__(
        self, folder: Path, probe: Callable[[], bool], failures_needed: int, probe_s: float
    ) -> None:
        """Watch ``folder``.

        Args:
            folder: The server's state folder.
            probe: Asks the model for something real; may take long.
            failures_needed: Failed probes in a row that prove the server wedged.
            probe_s: Least time between a probe's start and its judgement, in seconds: a server
                that refuses at once must get as long to move as one that does not answer.
        """
        self._file = folder / _NAME
        self._probe = probe
        self._failures_needed = failures_needed
        self._probe_s = probe_s
        self._began_s = 0.0
        self._failures = 0
        self._before: Activity | None = None
        self._result: list[bool] = []
        self._thread: threading.Thread | None = None
        self._clear()

    @property
    def is_there(self) -> bool:
        """Whether somebody reported the server, or a probe is under way."""
        return self._thread is not None or self._file.exists()

    def is_wedged(self, activity: Activity | None) -> bool:
        """Take a reading of the counters, go on probing if need be, and return the verdict."""
        if self._thread is None:
            if self._file.exists():
                self._begin(activity)
        elif not self._thread.is_alive() and time.monotonic() - self._began_s >= self._probe_s:
            self._end(activity)
        return self._failures >= self._failures_needed

    def _begin(self, activity: Activity | None) -> None:
        self._before = activity
        self._began_s = time.monotonic()
        self._result = []
        self._thread = threading.Thread(target=self._run, daemon=True, name="emberd-probe")
        self._thread.start()

    def _run(self) -> None:
        self._result.append(self._probe())

    def _end(self, activity: Activity | None) -> None:
        self._thread = None
        moved = (
            activity is not None
            and self._before is not None
            and (
                (activity.requests, activity.tokens) != (self._before.requests, self._before.tokens)
            )
        )
        if moved or self._result == [True]:
            self._failures = 0
            self._clear()
        else:
            self._failures += 1

    def _clear(self) -> None:
        # Whatever has the name: a directory there must not end the supervisor.
        with suppress(OSError):
            paths.remove(self._file)

"""The phases of a start, read from the server's log while it is written.

Each line counts from when it is seen, not by its own time: versions of SGLang write that in several
forms, and to the second.
"""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Final, Self

from emberd import Manager
from gpu.bench import LIVING

_POLL_S: Final = 0.1
_FIGURES: Final = re.compile(r"\s*\(?(?:retry )?\d.*$")

# The line that begins a phase, in the order of a start; a version may leave one out.
_MARKS: Final = (
    ("scheduler", re.compile(r"server_args=")),
    ("device", re.compile(r"Init (?:parallel|torch distributed) begin")),
    ("weights", re.compile(r"Load weight begin")),
    ("KV cache", re.compile(r"Load weight end")),
    ("attention", re.compile(r"Memory pool end")),
    ("graphs", re.compile(r"Capture .*?begin")),
    ("port", re.compile(r"max_total_num_tokens=")),
    ("warm-up", re.compile(r"Application startup complete")),
    ("verification", re.compile(r"The server is fired up")),
)
_FIRST: Final = "imports"


class Watch:
    """Follows the next start in a home, from its construction on.

    Args:
        manager: Of the home.
    """

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._before = {own.start_id for own in manager.status()}
        self._began = time.monotonic()
        self._seen: list[tuple[str, float]] = [(_FIRST, 0.0)]
        self._next = 0
        self._steps: list[tuple[float, str]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def seconds(self) -> float:
        """Return how long ago it was constructed."""
        return time.monotonic() - self._began

    def phases(self, total_s: float) -> dict[str, float]:
        """Return phase -> seconds, in their order; all of them together are ``total_s``."""
        ends = [*(at for _, at in self._seen[1:]), total_s]
        pairs = zip(self._seen, ends, strict=True)
        return {name: round(end - at, 1) for (name, at), end in pairs}

    def progress(self) -> list[tuple[float, str]]:
        """Return what emberd told those who waited, and when, without its figures."""
        return self._steps

    def _follow(self) -> None:
        log: Path | None = None
        place = 0
        while not self._over.wait(_POLL_S):
            starting = [
                own
                for own in self._manager.status()
                if own.start_id not in self._before and own.state in LIVING
            ]
            for own in starting:
                log = Path(own.log_path)
                self._told(own.detail if own.state == "starting" else "ready")
            if log is not None:
                place = self._read(log, place)

    def _told(self, detail: str) -> None:
        step = _FIGURES.sub("", detail)
        if step and (not self._steps or self._steps[-1][1] != step):
            self._steps.append((round(self.seconds(), 1), step))

    def _read(self, log: Path, place: int) -> int:
        try:
            with log.open("rb") as file:
                file.seek(place)
                text = file.read()
        except OSError:
            return place  # the start has just been noted, and has not opened its log yet
        whole = text.rfind(b"\n") + 1
        for line in text[:whole].decode(errors="replace").splitlines():
            self._mark(line)
        return place + whole

    def _mark(self, line: str) -> None:
        for number, (name, mark) in enumerate(_MARKS[self._next :], self._next):
            if mark.search(line):
                self._seen.append((name, self.seconds()))
                self._next = number + 1
                return


def in_words(phases: dict[str, float], least_s: float = 0.5) -> str:
    """Return the phases that took some time, in one line."""
    worth = ((name, seconds) for name, seconds in phases.items() if seconds >= least_s)
    return ", ".join(f"{name} {seconds:.1f}" for name, seconds in worth)

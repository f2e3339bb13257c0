"""Output of the command: results on stdout, the rest on stderr; exit codes; readable numbers."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from enum import IntEnum
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import typer

from emberd import errors

if TYPE_CHECKING:
    from rich.console import Console


# Output to a file or a pager is not wrapped to the width of a terminal.
_PIPED_COLUMNS: Final = 240
_LINE_EVERY_S: Final = 10.0


def write_line(text: str = "") -> None:
    """Write a line of the result."""
    typer.echo(text)


def note(text: str) -> None:
    """Write a message to stderr; it is not part of the result."""
    typer.echo(text, err=True)


def write_json(content: Any) -> None:
    """Write the result as JSON."""
    # What another encoding lacks would be escaped by the stream, in a way that JSON does not know.
    is_unicode = (sys.stdout.encoding or "").lower() in ("utf-8", "utf8")
    typer.echo(json.dumps(content, indent=2, ensure_ascii=not is_unicode))


def printable(text: str) -> str:
    """Return ``text`` without control characters, which a terminal would act on."""
    return "".join(c if c.isprintable() else " " for c in text)


class ProgressLine:
    """A line on stderr that changes: redrawn in place on a terminal, else written at times."""

    def __init__(self) -> None:
        """Prepare the line. It appears at the first ``show``."""
        self._status: Any = None
        self._topic: str | None = None
        self._written_s = 0.0

    def __enter__(self) -> ProgressLine:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the line from the terminal."""
        self.clear()

    def clear(self) -> None:
        """Remove the line from the terminal; the next ``show`` brings it back."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def show(self, line: str, topic: str = "") -> None:
        """Show ``line``; without a terminal only if ``topic`` changed, or every 10 s."""
        if sys.stderr.isatty():
            from rich.markup import escape

            if self._status is None:
                self._status = console(stderr=True).status(escape(line))
                self._status.start()
            self._status.update(escape(line))
        elif topic != self._topic or time.monotonic() - self._written_s >= _LINE_EVERY_S:
            self._topic, self._written_s = topic, time.monotonic()
            note(line)


def console(*, stderr: bool = False, piped_columns: int = _PIPED_COLUMNS) -> Console:
    """Return a console with colours only on a terminal, and without styles if NO_COLOR is set.

    Args:
        stderr: Whether it writes to stderr.
        piped_columns: Width of the output without a terminal.
    """
    # Imported late: `emberd env` must not pay for it.
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr,
        highlight=False,
        # Rich itself would still write bold and dim.
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        width=None if stream.isatty() else piped_columns,
        force_terminal=None if stream.isatty() else False,
    )


def restore_cursor_on_termination() -> None:
    """Make SIGTERM show the terminal's cursor, which progress hides, before it ends the process."""
    if (
        sys.stderr.isatty()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        and threading.current_thread() is threading.main_thread()
    ):
        signal.signal(signal.SIGTERM, _end)


def _end(signum: int, _: FrameType | None) -> None:
    signal.signal(signum, signal.SIG_DFL)
    if "rich.console" in sys.modules:  # otherwise no progress has been shown
        console(stderr=True).show_cursor(True)
    signal.raise_signal(signum)


class ExitCode(IntEnum):
    """Exit codes of all subcommands."""

    OK = 0
    ERROR = 1
    USAGE = 2
    NOTHING_RUNNING = 3
    NO_ENGINE = 4
    START_FAILED = 5
    ROWS_REJECTED = 6
    INTERRUPTED = 130


MEANINGS: Final[dict[ExitCode, str]] = {
    ExitCode.OK: "success",
    ExitCode.ERROR: "failure: the reason is on stderr; or the output pipe was closed",
    ExitCode.USAGE: "usage error: an option or an EMBERD_ variable is invalid",
    ExitCode.NOTHING_RUNNING: "no server is running (status, logs)",
    ExitCode.NO_ENGINE: "no engine can serve the model here, or a download was not allowed",
    ExitCode.START_FAILED: "a server did not start, or not in time",
    ExitCode.ROWS_REJECTED: "embed: complete, except for rows that were set aside",
    ExitCode.INTERRUPTED: "interrupted; a server that is starting continues to start",
}

_EXACT_BELOW_S: Final = 120
_EXACT_BELOW_PER_S: Final = 10
_LEAST_PHASE_S: Final = 0.1
_OF_ERRORS: Final[tuple[tuple[type[errors.EmberdError], ExitCode], ...]] = (
    (errors.SettingError, ExitCode.USAGE),
    (errors.NoEngineError, ExitCode.NO_ENGINE),
    (errors.StartError, ExitCode.START_FAILED),
    (errors.StartTimeoutError, ExitCode.START_FAILED),
    (errors.LockTimeoutError, ExitCode.START_FAILED),
)


def exit_code(error: BaseException) -> ExitCode:
    """Return the exit code for ``error``."""
    for kind, code in _OF_ERRORS:
        if isinstance(error, kind):
            return code
    return ExitCode.ERROR


def exit_code_table() -> str:
    """Return the codes with their meanings, one per line, as ``emberd --help`` shows them."""
    return "\n".join(f"  {code:>3}  {meaning}" for code, meaning in MEANINGS.items())


def duration(seconds: float) -> str:
    """Return ``seconds`` in words: ``45 s``, ``12 min``, ``3 h 5 min``, ``2 d 4 h``."""
    whole = max(0, round(seconds))
    if whole < _EXACT_BELOW_S:
        return f"{whole} s"
    minutes, hours, days = whole // 60 % 60, whole // 3600 % 24, whole // 86_400
    parts = ((days, "d"), (hours, "h")) if days else ((hours, "h"), (minutes, "min"))
    return " ".join(f"{count} {unit}" for count, unit in parts if count)


def rate(per_s: float) -> str:
    """Return a rate: with a decimal place if it is low."""
    return f"{per_s:.1f}" if 0 < per_s < _EXACT_BELOW_PER_S else f"{per_s:,.0f}"


def idle(seconds: float | None) -> str:
    """Return the idle timeout in words; None is ``never``."""
    return "never" if seconds is None else f"after {duration(seconds)}"


def start_phases(phases: Mapping[str, float]) -> str:
    """Return how long a start took, in all and by phase; empty if it is not known."""
    if not phases:
        return ""
    shown = ", ".join(f"{name} {s:.1f}" for name, s in phases.items() if s >= _LEAST_PHASE_S)
    return f"started in {sum(phases.values()):.1f} s{': ' if shown else ''}{shown}"


def pluralize(count: int, noun: str) -> str:
    """Return ``count`` with its noun in the right number: ``1 text``, ``2 texts``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"

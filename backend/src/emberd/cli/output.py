"""Output of the command: results on stdout, the rest on stderr; exit codes; readable numbers."""

from __future__ import annotations

import json
import os
import sys
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

import typer

from emberd import errors

if TYPE_CHECKING:
    from rich.console import Console


# Output to a file or a pager is not wrapped to the width of a terminal.
_PIPED_COLUMNS: Final = 240


def write_line(text: str = "") -> None:
    """Write a line of the result."""
    typer.echo(text)


def note(text: str) -> None:
    """Write a message to stderr; it is not part of the result."""
    typer.echo(text, err=True)


def write_json(content: Any) -> None:
    """Write the result as JSON."""
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False))


class Spinner:
    """A line on stderr that is redrawn in place. It appears at the first update."""

    def __init__(self) -> None:
        """Prepare a line without writing it."""
        self._status: Any = None

    def update(self, line: str) -> None:
        """Show ``line``."""
        from rich.markup import escape

        if self._status is None:
            self._status = console(stderr=True).status(escape(line))
            self._status.start()
        self._status.update(escape(line))

    def stop(self) -> None:
        """Remove the line."""
        if self._status is not None:
            self._status.stop()


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
    ExitCode.NO_ENGINE: "no engine can serve the model on this machine",
    ExitCode.START_FAILED: "a server did not start, or not in time",
    ExitCode.ROWS_REJECTED: "embed: complete, except for rows that were set aside",
    ExitCode.INTERRUPTED: "interrupted; a server that is starting continues to start",
}

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


_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_DAY_S: Final = 86_400
_EXACT_BELOW_S: Final = 120


def duration(seconds: float) -> str:
    """Return ``seconds`` in words: ``45 s``, ``12 min``, ``3 h 5 min``, ``2 d 4 h``."""
    whole = max(0, round(seconds))
    if whole < _EXACT_BELOW_S:
        return f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min"
    if whole < _DAY_S:
        return _two(whole // _HOUR_S, "h", whole % _HOUR_S // _MINUTE_S, "min")
    return _two(whole // _DAY_S, "d", whole % _DAY_S // _HOUR_S, "h")


def idle(seconds: float | None) -> str:
    """Return the idle timeout in words; None is ``never``."""
    return "never" if seconds is None else f"after {duration(seconds)}"


def pluralize(count: int, noun: str) -> str:
    """Return ``count`` with its noun in the right number: ``1 text``, ``2 texts``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _two(first: int, first_unit: str, second: int, second_unit: str) -> str:
    return f"{first} {first_unit}" + (f" {second} {second_unit}" if second else "")

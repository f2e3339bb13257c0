"""What the command writes: results on stdout, everything else on stderr."""

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


# A table that is read by a program, or by a pager, is not folded to a width nobody has.
_PIPED_COLUMNS: Final = 240


def say(text: str = "") -> None:
    """Write a line of the result."""
    typer.echo(text)


def note(text: str) -> None:
    """Write a line for people, which is no part of the result."""
    typer.echo(text, err=True)


def dump(content: Any) -> None:
    """Write the result as JSON."""
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False))


def console(*, stderr: bool = False, piped_columns: int = _PIPED_COLUMNS) -> Console:
    """Return a console that has colours on a terminal alone, and no style with NO_COLOR.

    Args:
        stderr: Whether it writes to stderr.
        piped_columns: How wide it writes where there is no terminal.
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


class Code(IntEnum):
    """Exit codes of every verb."""

    OK = 0
    ERROR = 1
    USAGE = 2
    NOTHING_RUNNING = 3
    NO_ENGINE = 4
    START_FAILED = 5
    SOME_SET_ASIDE = 6
    INTERRUPTED = 130


MEANINGS: Final[dict[Code, str]] = {
    Code.OK: "it worked",
    Code.ERROR: "it failed: the reason is on stderr; or its reader left (| head), which is silent",
    Code.USAGE: "wrong usage: an option, or an EMBERD_ variable, has a value that cannot be used",
    Code.NOTHING_RUNNING: "there is no server (status, logs)",
    Code.NO_ENGINE: "no engine can serve the model on this machine",
    Code.START_FAILED: "a server did not start, or not in time",
    Code.SOME_SET_ASIDE: "embed: the output is whole but for rows that were set aside",
    Code.INTERRUPTED: "interrupted; a server that is starting goes on starting",
}

_OF_ERRORS: Final[tuple[tuple[type[errors.EmberdError], Code], ...]] = (
    (errors.SettingError, Code.USAGE),
    (errors.NoEngineError, Code.NO_ENGINE),
    (errors.StartError, Code.START_FAILED),
    (errors.StartTimeoutError, Code.START_FAILED),
    (errors.LockTimeoutError, Code.START_FAILED),
)


def exit_code(error: BaseException) -> Code:
    """Return the exit code for ``error``."""
    for kind, code in _OF_ERRORS:
        if isinstance(error, kind):
            return code
    return Code.ERROR


def table() -> str:
    """Return the codes and their meanings, one a line, as ``emberd --help`` shows them."""
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
    """Return when a server stops that is asked to stay for ``seconds`` after its last use."""
    return "never" if seconds is None else f"after {duration(seconds)}"


def counted(count: int, noun: str) -> str:
    """Return ``count`` with its noun: ``1 text``, ``2 texts``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _two(first: int, first_unit: str, second: int, second_unit: str) -> str:
    return f"{first} {first_unit}" + (f" {second} {second_unit}" if second else "")

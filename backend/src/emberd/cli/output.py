"""What the command writes: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any, Final

import typer

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

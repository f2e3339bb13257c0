"""``emberd status``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from emberd import surface
from emberd.cli import options, output, words
from emberd.cli.codes import Code
from emberd.manager import ServerStatus, State
from emberd.servers import Manager

if TYPE_CHECKING:
    from rich.table import Table

RUNNING: Final = (State.STARTING, State.READY, State.STOPPING)
_COLOURS: Final = {
    State.READY: "green",
    State.STARTING: "yellow",
    State.STOPPING: "yellow",
    State.FAILED: "red",
}
_COLUMNS: Final = ("model", "state", "for", "engine", "url", "stops when idle", "keeper", "detail")

All = Annotated[bool, typer.Option("--all", "-a", help="Show servers that are gone, too.")]


def status(show_all: All = False, as_json: options.AsJson = False) -> None:
    """Show servers: what they do, and where.

    Those that emberd keeps, and those of others that it uses. Failed starts are shown with
    their cause. The exit code is 3 when no server runs.
    """
    known = [_seen(own) for own in Manager().status()]
    shown = [own for own in known if show_all or own.state is not State.ABSENT]
    if as_json:
        output.dump({"servers": [as_content(own) for own in shown]})
    elif shown:
        output.console().print(_table(shown))
    if not any(own.state in RUNNING for own in known):
        output.note("No server runs. `emberd up` starts one.")
        raise typer.Exit(Code.NOTHING_RUNNING)


def as_content(own: ServerStatus) -> dict[str, Any]:
    """Return a server's status as JSON shows it: everything but its key."""
    content = asdict(own)
    del content["api_key"]
    return content


def _seen(own: ServerStatus) -> ServerStatus:
    # Nobody keeps the record of somebody else's server true: it is asked.
    from dataclasses import replace

    if own.origin == "found" and own.url is not None and not surface.is_ready(own.url):
        return replace(own, state=State.ABSENT, url=None, detail=f"{own.url} does not answer")
    return own


def _table(shown: list[ServerStatus]) -> Table:
    from rich.table import Table

    table = Table(*_COLUMNS, box=None, pad_edge=False, header_style="bold")
    for own in shown:
        table.add_row(*_row(own))
    return table


def _row(own: ServerStatus) -> list[Any]:
    from rich.text import Text

    found = own.origin == "found"
    return [
        Text(own.spec.model),
        Text(own.state, style=_COLOURS.get(own.state, "dim")),
        Text(words.duration(own.seconds)),
        Text(own.engine or "?"),
        Text(own.url or "-"),
        Text("not by emberd" if found else words.idle(own.idle_timeout)),
        Text("somebody else's" if found else str(own.keeper_pid or "-")),
        Text(own.detail),
    ]

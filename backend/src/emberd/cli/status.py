"""``emberd status``."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from emberd import probe
from emberd.catalog import EMBED
from emberd.cli import options, output, serve_background
from emberd.cli.output import ExitCode
from emberd.errors import EmberdError, ServerMismatchError
from emberd.manager import ServerStatus, State, discovery
from emberd.verified_manager import Manager

if TYPE_CHECKING:
    from rich.text import Text

RUNNING: Final = (State.STARTING, State.READY, State.STOPPING, State.UNKNOWN)
_COLOURS: Final = {
    State.READY: "green",
    State.STARTING: "yellow",
    State.STOPPING: "yellow",
    State.FAILED: "red",
    State.UNKNOWN: "red",
}
_GIB: Final = 1 << 30
_LEAST_DETAIL_COLUMNS: Final = 24
_GAPS_COLUMNS: Final = (2, 1)  # between two columns: the wider one if it fits

All = Annotated[bool, typer.Option("--all", "-a", help="Include stopped servers.")]


def status(show_all: All = False, as_json: options.AsJson = False) -> None:
    """Show servers, their state and their URL, and the gateway in the background.

    Shows servers that emberd started and external servers that it uses. Failed starts are shown
    with their cause. A server whose record is lost is shown as unknown. The exit code is 3 if no
    server is running.
    """
    known = [_seen(own) for own in Manager().status()]
    gateway = serve_background.shown(show_all=show_all)
    shown = [own for own in known if show_all or own.state is not State.ABSENT]
    if as_json:
        content = {"servers": [as_content(own) for own in shown]}
        output.write_json({**content, "gateway": serve_background.as_content(gateway)})
    else:
        if shown:
            _print(shown)
        if gateway is not None:
            serve_background.write(gateway)
    is_reachable = gateway is not None and gateway.is_running
    if not (is_reachable or any(own.state in RUNNING for own in known)):
        output.note("No server is running. Start one with `emberd up`.")
        raise typer.Exit(ExitCode.NOTHING_RUNNING)


def as_content(own: ServerStatus) -> dict[str, Any]:
    """Return the JSON form of a server's status, without its key and listening socket."""
    content = asdict(own)
    del content["api_key"], content["listener"]
    return content


def _seen(own: ServerStatus) -> ServerStatus:
    # An external server has no supervisor that updates its record, so it is probed here.
    if own.origin != "found" or own.url is None:
        return own
    detail = f"{own.url} does not respond"
    try:
        if probe.is_ready(own.url, listener=discovery.listener_to_probe(own)):
            return own
    except ServerMismatchError as error:
        detail = str(error)
    except EmberdError:
        pass  # nothing listens there
    return replace(own, state=State.ABSENT, url=None, detail=detail)


def _print(shown: list[ServerStatus]) -> None:
    from rich.table import Table
    from rich.text import Text

    console = output.console()
    rows = [_row(own) for own in shown]
    names = [name for name in rows[0] if any(row[name].plain for row in rows)]
    for gap in _GAPS_COLUMNS:
        if _width(names, rows, gap) <= console.width:
            table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
            for name in names:
                table.add_column(name, no_wrap=name != "detail")
            for row in rows:
                table.add_row(*(row[name] for name in names))
            console.print(table)
            return
    # A table that is too wide would cut names and URLs, which users copy.
    for row in rows:
        title, *facts = (name for name in names if row[name].plain)
        console.print(row[title], soft_wrap=True)
        for name in facts:
            console.print(Text.assemble(f"  {name:<17}", row[name]), soft_wrap=True)


def _width(names: list[str], rows: list[dict[str, Text]], gap: int) -> int:
    widths = {name: max(len(name), *(row[name].cell_len for row in rows)) for name in names}
    if "detail" in widths:
        widths["detail"] = min(widths["detail"], _LEAST_DETAIL_COLUMNS)
    return sum(widths.values()) + gap * (len(names) - 1)


def _planned(own: ServerStatus) -> str:
    """Return what was planned for a server on each of its GPUs; empty if that is not known."""
    planned = own.gpu_memory
    if planned is None:
        return ""
    each = f" x {len(planned.gpus)}" if len(planned.gpus) > 1 else ""
    return f"{planned.planned_bytes / _GIB:.1f} GiB{each}"


def _row(own: ServerStatus) -> dict[str, Text]:
    """Return the cells by column."""
    from rich.text import Text

    found, detail = own.origin == "found", own.detail
    if own.state is State.STARTING:
        detail = f"{detail} ({output.duration(own.seconds - sum(own.phases.values()))})"
    elif own.state is State.READY and not detail:
        detail = output.start_phases(own.phases)
    stops = "not by emberd" if found else output.idle(own.idle_timeout)
    return {
        "model": Text(own.spec.model),
        "task": Text(own.spec.task if own.spec.task != EMBED else ""),
        "state": Text(own.state, style=_COLOURS.get(own.state, "dim")),
        "for": Text(output.duration(own.seconds)),
        "engine": Text(own.engine or "?"),
        "GPU memory": Text(_planned(own)),
        "url": Text(own.url or "-"),
        "stops when idle": Text(
            stops if own.state in RUNNING and own.state is not State.UNKNOWN else "-"
        ),
        "supervisor": Text("external" if found else str(own.supervisor_pid or "-")),
        "detail": Text(detail),
    }

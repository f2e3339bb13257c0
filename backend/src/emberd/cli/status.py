"""``emberd status``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from emberd import durations, probe
from emberd.cli import live_status, options, output, serve_background, shown_servers
from emberd.cli.output import ExitCode
from emberd.cli.shown_servers import RUNNING
from emberd.errors import SettingError
from emberd.manager import ServerStatus, State
from emberd.system.listeners import Listener
from emberd.verified_manager import Manager

if TYPE_CHECKING:
    from rich.text import Text

All = Annotated[bool, typer.Option("--all", "-a", help="Include stopped servers.")]
Watch = Annotated[
    bool,
    typer.Option(
        "--watch",
        "-w",
        help="Show what the servers do, again and again, until Ctrl-C. Without a terminal each "
        "time is printed after the last, with --json as one line.",
    ),
]
Interval = Annotated[
    str | None,
    typer.Option(
        "--interval",
        "-n",
        metavar="DURATION",
        help=f"With --watch: pause between two readings, as 5s. "
        f"Default: {output.duration(live_status.INTERVAL_S)}.",
    ),
]


def status(
    show_all: All = False,
    watch: Watch = False,
    interval: Interval = None,
    as_json: options.AsJson = False,
) -> None:
    """Show servers, their state and their URL, and the gateway in the background.

    Shows servers that emberd started and external servers that it uses. Failed starts are shown
    with their cause. A server whose record is lost is shown as unknown. The exit code is 3 if no
    server is running. `emberd ps` is the same command.
    """
    if watch:
        seconds = live_status.INTERVAL_S
        if interval is not None:
            seconds = durations.validate("interval", interval)
        live_status.watch(show_all=show_all, interval_s=seconds, as_json=as_json)
    if interval is not None:
        raise SettingError(f"--interval {interval} is given without --watch. Add --watch.")
    known = [shown_servers.seen(own, is_ready) for own in Manager().status()]
    gateway = serve_background.shown(show_all=show_all)
    shown = [own for own in known if show_all or own.state is not State.ABSENT]
    if as_json:
        content = {"servers": [shown_servers.as_content(own) for own in shown]}
        output.write_json({**content, "gateway": serve_background.as_content(gateway)})
    else:
        if shown:
            _print(shown)
        if gateway is not None:
            for line in serve_background.lines(gateway):
                output.write_line(line)
    is_reachable = gateway is not None and gateway.is_running
    if not (is_reachable or any(own.state in RUNNING for own in known)):
        output.note(shown_servers.none_running())
        raise typer.Exit(ExitCode.NOTHING_RUNNING)


def is_ready(url: str, listener: Listener | None) -> bool:
    """Return whether an external server accepts requests."""
    return probe.is_ready(url, listener=listener)


def _print(shown: list[ServerStatus]) -> None:
    rows = [_row(own) for own in shown]
    shown_servers.write(shown_servers.arranged(rows, output.console().width))


def _row(own: ServerStatus) -> dict[str, Text]:
    """Return the cells by column."""
    from rich.text import Text

    found, detail = own.origin == "found", shown_servers.detail(own)
    if own.state is State.READY and not detail:
        detail = output.start_phases(own.phases)
    stops = "not by emberd" if found else output.idle(own.idle_timeout)
    return {
        **shown_servers.identity_cells(own),
        "for": Text(output.duration(own.seconds)),
        "engine": Text(own.engine or "?"),
        "GPU memory": Text(shown_servers.planned(own)),
        "url": Text(own.url or "-"),
        "stops when idle": Text(
            stops if own.state in RUNNING and own.state is not State.UNKNOWN else "-"
        ),
        "supervisor": Text("external" if found else str(own.supervisor_pid or "-")),
        "detail": Text(detail),
    }

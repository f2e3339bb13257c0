"""``emberd status --watch``: what the servers do, again and again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn

from emberd import probe, server_load
from emberd.cli import output, serve_background, shown_servers
from emberd.errors import EmberdError
from emberd.manager import ServerStatus, State, discovery, gpu_servers, idle, lost_records
from emberd.server_load import Quantile, Reading, ServerLoad
from emberd.system.listeners import Listener
from emberd.verified_manager import Manager

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from emberd.gateway.background_gateway import GatewayStatus

INTERVAL_S: Final = 2.0

_LEAST_INTERVAL_S: Final = 0.1
_UNKNOWN: Final = "-"


@dataclass(frozen=True, slots=True)
class _Shown:
    """One server at one moment.

    Attributes:
        own: Its status.
        load: What it did since the last reading; None if it does not show that.
        idle_left_s: Time until it stops unless it is used; None if it does not stop, or if that is
            not known.
        gpu_used_bytes: The most that it uses on one of its GPUs; None if that is not known.
    """

    own: ServerStatus
    load: ServerLoad | None
    idle_left_s: float | None
    gpu_used_bytes: int | None

    def content(self) -> dict[str, Any]:
        """Return its JSON form."""
        return {
            **shown_servers.as_content(self.own),
            "load": asdict(self.load) if self.load else None,
            "idle_left_s": self.idle_left_s,
            "gpu_used_bytes": self.gpu_used_bytes,
        }


def watch(*, show_all: bool, interval_s: float, as_json: bool) -> NoReturn:
    """Show what the servers do, until it is interrupted.

    On a terminal the view is drawn in place, otherwise each one is printed after the last.

    Args:
        show_all: Whether servers that have stopped are included.
        interval_s: The pause after each view.
        as_json: Whether each view is a line of JSON.
    """
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    interval_s = max(interval_s, _LEAST_INTERVAL_S)
    console = output.console()
    redraws = console.is_terminal and not console.is_dumb_terminal and not as_json
    live = Live(console=console, auto_refresh=False, vertical_overflow="crop")
    with live if redraws else nullcontext():
        for shown, gateway in _views(interval_s, show_all=show_all):
            now = datetime.now().astimezone()
            if as_json:
                content = {
                    "time": now.isoformat(),
                    "servers": [each.content() for each in shown],
                    "gateway": serve_background.as_content(gateway),
                }
                output.write_line(json.dumps(content))
                continue
            title = f"{now:%Y-%m-%d %H:%M:%S}, every {interval_s:g} s"
            view: list[RenderableType] = []
            if shown:
                arranged = shown_servers.arranged([_row(each) for each in shown], console.width)
                view = [*arranged] if isinstance(arranged, list) else [arranged]
            if gateway is not None:
                view += [Text(line) for line in serve_background.lines(gateway)]
            if not view:
                view = [Text(shown_servers.none_running())]
            if redraws:
                hint = Text(f"{title}; Ctrl-C ends it", style="dim", overflow="ellipsis")
                live.update(Group(hint, *view), refresh=True)
            else:
                console.print(Group(title, *view, ""))
    raise AssertionError  # the views have no end


def _views(
    interval_s: float, *, show_all: bool
) -> Iterator[tuple[list[_Shown], GatewayStatus | None]]:
    """Yield what there is to see of servers and of the gateway, with a pause after each view."""
    manager = Manager()
    last: dict[tuple[str, str], Reading | None] = {}
    while True:
        marks = lost_records.marks_read_once()
        readings: dict[tuple[str, str], Reading | None] = {}
        shown = []
        for known in manager.status():
            own = shown_servers.seen(known, _is_up)
            if own.state is State.ABSENT and not show_all:
                continue
            load = None
            if own.url is not None and own.state is not State.STARTING:
                server = (own.key, own.start_id)
                before, now = last.get(server), _reading(own, own.url)
                load = server_load.between(before, now) if now else None
                # A busy server may miss one: the next rates are those since the last that it gave.
                readings[server] = now or before
            used = gpu_servers.used_bytes(own, marks)
            left_s = idle.left_s(own.idle_timeout, own.unused_s)
            shown.append(_Shown(own, load, left_s, max(used.values(), default=None)))
        last = readings
        yield shown, serve_background.shown(show_all=show_all)
        time.sleep(interval_s)


def _is_up(url: str, listener: Listener | None) -> bool:
    # A server without /ready is not asked for /health, which runs a token through its model.
    return probe.readiness(url, listener=listener) is not False


def _reading(own: ServerStatus, url: str) -> Reading | None:
    try:
        # An external server that was restarted has another listening socket than in its record.
        listener = discovery.listener_to_probe(own)
    except EmberdError:
        return None
    return server_load.read(url, listener=listener)


def _row(seen: _Shown) -> dict[str, Text]:
    """Return the cells by column."""
    from rich.text import Text

    own, load = seen.own, seen.load
    cells = {
        "stops in": _stop(seen),
        "running": f"{load.running:.0f}" if load else _UNKNOWN,
        "queued": f"{load.queued:.0f}" if load else _UNKNOWN,
        "texts/s": _rate(load.texts_per_s if load else None),
        "tokens/s": _rate(load.tokens_per_s if load else None),
        "p50": _latency(load.p50 if load else None),
        "p95": _latency(load.p95 if load else None),
        "GPU memory": shown_servers.planned(own, seen.gpu_used_bytes),
        "detail": shown_servers.detail(own),
    }
    numbers = {name: Text(cell) for name, cell in cells.items()}
    return {**shown_servers.identity_cells(own), **numbers}


def _stop(seen: _Shown) -> str:
    own, load = seen.own, seen.load
    if own.state is not State.READY or own.origin == "found":
        return _UNKNOWN
    if own.idle_timeout is None:
        return "never"
    if load is not None and load.running + load.queued > 0:
        return "in use"
    return _UNKNOWN if seen.idle_left_s is None else output.duration(seen.idle_left_s)


def _rate(per_s: float | None) -> str:
    return _UNKNOWN if per_s is None else output.rate(per_s)


def _latency(quantile: Quantile | None) -> str:
    if quantile is None:
        return _UNKNOWN
    seconds = quantile.seconds
    shown = f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
    return f"{quantile.sign}{shown}"

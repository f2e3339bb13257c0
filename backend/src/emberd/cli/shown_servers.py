"""What ``emberd status`` and its live view show of servers, and how a table of them is arranged."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

from emberd import env
from emberd.catalog import EMBED
from emberd.cli import output
from emberd.errors import EmberdError, ServerMismatchError
from emberd.manager import ServerStatus, State, discovery
from emberd.system.listeners import Listener

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

RUNNING: Final = (State.STARTING, State.READY, State.STOPPING, State.UNKNOWN)
GIB: Final = 1 << 30

_COLOURS: Final = {
    State.READY: "green",
    State.STARTING: "yellow",
    State.STOPPING: "yellow",
    State.FAILED: "red",
    State.UNKNOWN: "red",
}
_LEAST_DETAIL_COLUMNS: Final = 24
_NAME_COLUMNS: Final = 17
_GAPS_COLUMNS: Final = (2, 1)  # between two columns: the wider one if it fits

IsUp = Callable[[str, Listener | None], bool]
"""Whether a server responds, by its URL and its listening socket."""


def none_running() -> str:
    """Return what to say if no server is running, and no gateway."""
    variable = env.setting_variable("base_url")
    if env.text(variable) is None:
        return "No server is running. Start one with `emberd up`."
    return (
        f"emberd runs no server on this machine, because {variable} names one. Check that server "
        f"with `emberd doctor`."
    )


def as_content(own: ServerStatus) -> dict[str, Any]:
    """Return the JSON form of a server's status, without its key and listening socket."""
    content = asdict(own)
    del content["api_key"], content["listener"]
    return content


def seen(own: ServerStatus, is_up: IsUp) -> ServerStatus:
    """Return the status of a server; an external one is probed.

    It has no supervisor that updates its record.
    """
    if own.origin != "found" or own.url is None:
        return own
    detail = f"{own.url} does not respond"
    try:
        if is_up(own.url, discovery.listener_to_probe(own)):
            return own
    except ServerMismatchError as error:
        detail = str(error)
    except EmberdError:
        pass  # nothing listens there
    return replace(own, state=State.ABSENT, url=None, detail=detail)


def identity_cells(own: ServerStatus) -> dict[str, Text]:
    """Return the cells that say which server it is, and its state, by column."""
    from rich.text import Text

    return {
        "model": Text(own.spec.model),
        "task": Text(own.spec.task if own.spec.task != EMBED else ""),
        "state": Text(own.state, style=_COLOURS.get(own.state, "dim")),
    }


def detail(own: ServerStatus) -> str:
    """Return what else there is to say: progress, failure or reason."""
    if own.state is State.STARTING:
        return f"{own.detail} ({output.duration(own.seconds - sum(own.phases.values()))})"
    return own.detail


def planned(own: ServerStatus, used_bytes: int | None = None) -> str:
    """Return the memory that was planned for a server on each of its GPUs; empty if unknown.

    Args:
        own: The server.
        used_bytes: What it uses on one of them, to be shown too.
    """
    memory = own.gpu_memory
    if memory is None:
        return ""
    used = "" if used_bytes is None else f"{used_bytes / GIB:.1f} of "
    each = f" x {len(memory.gpus)}" if len(memory.gpus) > 1 else ""
    return f"{used}{memory.planned_bytes / GIB:.1f} GiB{each}"


def arranged(rows: list[dict[str, Text]], columns: int) -> Table | list[Text]:
    """Return a table of ``rows``; lines, if the table is wider than ``columns``.

    A table that is too wide would cut names and URLs, which users copy. Of the lines, only the
    detail is wrapped.

    Args:
        rows: Cells by column, the same columns in each row; a column without content is left out.
        columns: The width of the terminal.
    """
    from rich.table import Table
    from rich.text import Text

    names = [name for name in rows[0] if any(row[name].plain for row in rows)]
    for gap in _GAPS_COLUMNS:
        if _width(names, rows, gap) <= columns:
            table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
            for name in names:
                table.add_column(name, no_wrap=name != "detail")
            for row in rows:
                table.add_row(*(row[name] for name in names))
            return table
    lines = []
    for row in rows:
        title, *facts = (name for name in names if row[name].plain)
        lines.append(row[title])
        for name in facts:
            parts = [row[name]]
            if name == "detail":
                parts = [Text(each) for each in _wrapped(row[name].plain, columns)]
            lines += [
                Text.assemble(f"  {'' if number else name:<{_NAME_COLUMNS}}", part)
                for number, part in enumerate(parts)
            ]
    return lines


def _wrapped(text: str, columns: int) -> list[str]:
    """Return the lines of a detail; a word that is longer than a line, such as a path, is whole."""
    return textwrap.wrap(
        text,
        max(columns - _NAME_COLUMNS - len("  "), _LEAST_DETAIL_COLUMNS),
        break_long_words=False,
        break_on_hyphens=False,
    )


def write(arrangement: Table | list[Text]) -> None:
    """Write what ``arranged`` returned as a result."""
    console = output.console()
    if isinstance(arrangement, list):
        for line in arrangement:
            console.print(line, soft_wrap=True)
    else:
        console.print(arrangement)


def _width(names: list[str], rows: list[dict[str, Text]], gap: int) -> int:
    widths = {name: max(len(name), *(row[name].cell_len for row in rows)) for name in names}
    if "detail" in widths:
        widths["detail"] = min(widths["detail"], _LEAST_DETAIL_COLUMNS)
    return sum(widths.values()) + gap * (len(names) - 1)

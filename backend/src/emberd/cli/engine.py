"""``emberd engine``: install, list and remove the environments of engines."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from emberd.cli import options, output
from emberd.env import Places
from emberd.installs import install, installed, recipes, remove, sites
from emberd.system.disk_space import in_words

if TYPE_CHECKING:
    from rich.table import Table

_COLUMNS: Final = ("engine", "version", "state", "size", "python", "detail")

Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help=f"One of: {', '.join(recipes.RECIPES)}."),
]


def engine_install(name: Name, as_json: options.AsJson = False) -> None:
    """Install an engine into its own environment.

    The environment is in EMBERD_ENGINES, else in EMBERD_HOME. Uses uv if available, else venv and
    pip. Takes minutes and gigabytes. An interrupted installation starts again from the beginning.
    """
    places = Places.resolve()
    before = installed(places, name)
    begun_s = time.monotonic()
    with output.ProgressLine() as line:
        done = install(name, places, line.show)
    seconds = time.monotonic() - begun_s
    if as_json:
        output.write_json({"installed": asdict(done), "seconds": round(seconds, 1)})
        return
    what = f"{done.name} {done.version}"
    if done in before:
        output.write_line(f"{what} is already installed ({in_words(done.bytes)}).")
    else:
        output.write_line(
            f"Installed {what}: {in_words(done.bytes)} in {output.duration(seconds)}."
        )
    output.write_line(f"Folder: {done.folder}")
    output.write_line(f"Next: emberd up --engine {done.name}")


def engine_list(as_json: options.AsJson = False) -> None:
    """List the engines with their state and Python interpreter."""
    # Imported late, to keep the other subcommands fast.
    from emberd.doctor.engines import environments

    places = Places.resolve()
    rows = [
        asdict(found)
        for recipe in recipes.RECIPES.values()
        for found in environments(recipe, places)
    ]
    if as_json:
        output.write_json({"engines": rows, "folder": places.engines})
        return
    output.console().print(_table(rows))
    if missing := [row["engine"] for row in rows if row["state"] == "not installed"]:
        output.note(f"To install one: emberd engine install {missing[0]}")


def engine_remove(name: Name, as_json: options.AsJson = False) -> None:
    """Remove an engine's environment, unless a server is running from it."""
    places = Places.resolve()
    was_there = bool(sites(places, name))
    gone = remove(name, places)
    if as_json:
        output.write_json({"removed": asdict(gone) if gone else None})
    elif gone:
        output.write_line(f"Removed {gone.name} {gone.version} ({in_words(gone.bytes)}).")
    elif was_there:
        output.write_line(f"Removed the remains of an interrupted installation of {name}.")
    else:
        output.write_line(f"{name} is not installed.")


def _table(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in _COLUMNS:
        # Wrapped, not cut, so that paths can be copied.
        table.add_column(column, overflow="fold", no_wrap=column in _COLUMNS[:4])
    for row in rows:
        size = in_words(row["bytes"]) if row["bytes"] else ""
        place = row["python"] or row["folder"] or ""
        cells = (row["engine"], row["version"], row["state"], size, place, row["detail"])
        table.add_row(*(Text(cell) for cell in cells))
    return table


VERBS: Final[dict[str, Callable[..., None]]] = {
    "install": engine_install,
    "list": engine_list,
    "remove": engine_remove,
}

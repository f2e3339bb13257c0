"""``emberd history``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Final

import typer

from emberd.cli import options, output
from emberd.cli.stop import Model
from emberd.manager import history as kept
from emberd.manager.history import Event
from emberd.verified_manager import Manager

_LINES: Final = 50
_START_ID: Final = 8  # characters
_WIDTH: Final = max(map(len, kept.EVENTS))

Lines = Annotated[int, typer.Option("-n", "--lines", min=1, metavar="N", help="Number of events.")]


def history(
    name: options.ModelName = None,
    model: Model = None,
    lines: Lines = _LINES,
    as_json: options.AsJson = False,
) -> None:
    """Show what happened to servers: starts, failures, crashes and stops, with their causes.

    Events of all machines that share EMBERD_HOME are shown, the newest last. Some hundred events
    are kept.
    """
    wanted = options.resolve_model(name, model)
    events = [each for each in Manager().history() if wanted in (None, each.model)][-lines:]
    if as_json:
        output.write_json({"events": [_content(each) for each in events]})
        return
    for each in events:
        output.write_line(_line(each))
    if not events:
        of_model = f" of {wanted}" if wanted else ""
        output.note(f"No server{of_model} has been started or used yet.")


def _content(event: Event) -> dict[str, Any]:
    content = asdict(event)
    return {**content.pop("facts"), **content}


def _line(event: Event) -> str:
    start, what = event.start_id[:_START_ID], event.event.replace("_", " ")
    line = f"{_local(event.time)}  {start:{_START_ID}}  {what:{_WIDTH}}  {event.model}"
    details = _details(event.event, event.facts)
    return output.printable(f"{line}  {details}".rstrip())


def _local(time: str) -> str:
    try:
        return f"{datetime.fromisoformat(time).astimezone():%Y-%m-%d %H:%M:%S}"
    except ValueError:
        return f"{time:19.19}"


def _details(event: str, facts: Mapping[str, Any]) -> str:
    """Return what is known besides, in words."""
    seconds, phases, found = facts.get("seconds"), facts.get("phases"), []
    if event == kept.READY and isinstance(phases, dict):
        found.append(output.start_phases(phases))
    elif isinstance(seconds, int | float):
        found.append(f"after {output.duration(seconds)}")
    if phase := facts.get("phase"):
        found.append(f"while {phase}")
    if (attempts := facts.get("attempts", 1)) != 1:
        found.append(f"attempt {attempts}")
    if lost := facts.get("lost"):
        found.append(f"the caller lost {str(lost)[:_START_ID]}")
    if pid := facts.get("by_pid"):
        found.append(f"by process {pid} ({facts.get('by', '')})")
    found += [str(facts[each]).split("\n")[0] for each in ("url", "cause") if each in facts]
    return "; ".join(found)

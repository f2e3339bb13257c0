"""``emberd doctor``."""

from __future__ import annotations

from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

import typer

from emberd.catalog import EMBED
from emberd.cli import options, output
from emberd.cli.output import ExitCode

if TYPE_CHECKING:
    from emberd.doctor import Report

_MARKS: Final = {
    "ok": ("ok", "green"),
    "note": ("note", "yellow"),
    "problem": ("PROBLEM", "bold red"),
}
_INDENT: Final = 11
_SHOWN: Final = ("part", "name", "level", "fact", "advice")


def doctor(
    name: options.ModelName = None,
    model: options.Model = None,
    task: options.Task = None,
    engine: options.Engine = None,
    device: options.Device = None,
    revision: options.Revision = None,
    quantization: options.Quantization = None,
    as_json: options.AsJson = False,
) -> None:
    """Diagnose this machine and suggest the next command.

    Takes a few seconds, starts nothing and changes nothing. The output of --json is meant for
    bug reports: it contains no key, token or password. The exit code is 1 if the model cannot be
    served on this machine.
    """
    # Imported late, to keep the other subcommands fast.
    from emberd.doctor import examine

    model = options.resolve_model(name, model)
    wishes = {"model": model, "engine": engine, "device": device, "revision": revision}
    wishes |= {"quantization": quantization, "task": task}
    report = examine({name: text for name, text in wishes.items() if text is not None})
    content = as_content(report)
    if as_json:
        output.write_json(content)
    else:
        _print(content)
    if not report.verdict.good:
        raise typer.Exit(ExitCode.ERROR)


def as_content(report: Report) -> dict[str, Any]:
    """Return the JSON form of a report."""
    cli = partial(options.to_cli_names, task=report.wanted["task"] or EMBED)
    return {
        "ok": report.verdict.good,
        "verdict": cli(report.verdict.text),
        "next": cli(report.verdict.next),
        "wanted": dict(report.wanted),
        "findings": [
            {name: cli(getattr(finding, name)) for name in _SHOWN} for finding in report.findings
        ],
        "seconds": round(report.seconds, 2),
    }


def _print(content: dict[str, Any]) -> None:
    from rich.text import Text

    console = output.console()
    for part, findings in groupby(content["findings"], key=itemgetter("part")):
        console.print(part, markup=False)
        for finding in findings:
            mark, colour = _MARKS[finding["level"]]
            text = f"{finding['name']}: {finding['fact']}"
            line = Text.assemble((f"  {mark}".ljust(_INDENT), colour), text)
            if finding["advice"]:
                line.append(f"\n{' ' * _INDENT}{finding['advice']}")
            # Wrapped only by the terminal, so that paths and commands can be copied.
            console.print(line, soft_wrap=True)
    console.print()
    console.print(content["verdict"], markup=False, soft_wrap=True)
    if content["next"]:
        console.print(f"Next: {content['next']}", markup=False, soft_wrap=True)

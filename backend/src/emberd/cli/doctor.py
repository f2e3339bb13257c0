"""``emberd doctor``."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import typer

from emberd.cli import options, output
from emberd.cli.output import ExitCode

if TYPE_CHECKING:
    from rich.text import Text

    from emberd.doctor import Finding, Report

_MARKS: Final = {"ok": "ok", "note": "note", "problem": "PROBLEM"}
_COLOURS: Final = {"ok": "green", "note": "yellow", "problem": "bold red"}
_MARK_COLUMNS: Final = 9


def doctor(
    name: options.ModelName = None,
    model: options.Model = None,
    engine: options.Engine = None,
    device: options.Device = None,
    revision: options.Revision = None,
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
    report = examine({name: text for name, text in wishes.items() if text is not None})
    if as_json:
        output.write_json(as_content(report))
    else:
        _print(report)
    if not report.verdict.good:
        raise typer.Exit(ExitCode.ERROR)


def as_content(report: Report) -> dict[str, Any]:
    """Return the JSON form of a report."""
    return {
        "ok": report.verdict.good,
        "verdict": options.to_cli_names(report.verdict.text),
        "next": options.to_cli_names(report.verdict.next),
        "wanted": dict(report.wanted),
        "findings": [
            {
                "part": finding.part,
                "name": finding.name,
                "level": finding.level,
                "fact": options.to_cli_names(finding.fact),
                "advice": options.to_cli_names(finding.advice),
            }
            for finding in report.findings
        ],
        "seconds": round(report.seconds, 2),
    }


def _print(report: Report) -> None:
    console = output.console()
    for part, findings in groupby(report.findings, key=lambda finding: finding.part):
        console.print(part, markup=False)
        for finding in findings:
            # Wrapped only by the terminal, so that paths and commands can be copied.
            console.print(_line(finding), soft_wrap=True)
    console.print()
    for line in _verdict(report):
        console.print(line, markup=False, soft_wrap=True)


def _line(finding: Finding) -> Text:
    from rich.text import Text

    mark = f"  {_MARKS[finding.level]:<{_MARK_COLUMNS}}"
    fact = f"{finding.name}: {options.to_cli_names(finding.fact)}"
    line = Text.assemble((mark, _COLOURS[finding.level]), fact)
    if finding.advice:
        line.append(f"\n{' ' * len(mark)}{options.to_cli_names(finding.advice)}")
    return line


def _verdict(report: Report) -> list[str]:
    verdict = report.verdict
    lines = [verdict.text, *([f"Next: {verdict.next}"] if verdict.next else [])]
    return [options.to_cli_names(line) for line in lines]

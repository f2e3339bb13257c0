"""``emberd doctor``."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import typer

from emberd.cli import options, output
from emberd.cli.output import Code

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
    """Look what is wrong with this machine, and say what to type.

    Takes a few seconds, starts nothing and changes nothing. What --json writes is for a bug
    report: no key, token or password stands in it. The exit code is 1 when no server of the
    model can be had here.
    """
    # Imported late: the other verbs must not pay for it.
    from emberd.doctor import examine

    model = options.one_model(name, model)
    wishes = {"model": model, "engine": engine, "device": device, "revision": revision}
    report = examine({name: text for name, text in wishes.items() if text is not None})
    if as_json:
        output.dump(as_content(report))
    else:
        _print(report)
    if not report.verdict.good:
        raise typer.Exit(Code.ERROR)


def as_content(report: Report) -> dict[str, Any]:
    """Return a report as JSON shows it."""
    return {
        "ok": report.verdict.good,
        "verdict": options.spelt(report.verdict.text),
        "next": options.spelt(report.verdict.next),
        "wanted": dict(report.wanted),
        "findings": [
            {
                "part": finding.part,
                "name": finding.name,
                "level": finding.level,
                "fact": options.spelt(finding.fact),
                "advice": options.spelt(finding.advice),
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
            # Folded by the terminal alone: paths and commands are there to be copied.
            console.print(_line(finding), soft_wrap=True)
    console.print()
    for line in _verdict(report):
        console.print(line, markup=False, soft_wrap=True)


def _line(finding: Finding) -> Text:
    from rich.text import Text

    mark = f"  {_MARKS[finding.level]:<{_MARK_COLUMNS}}"
    fact = f"{finding.name}: {options.spelt(finding.fact)}"
    line = Text.assemble((mark, _COLOURS[finding.level]), fact)
    if finding.advice:
        line.append(f"\n{' ' * len(mark)}{options.spelt(finding.advice)}")
    return line


def _verdict(report: Report) -> list[str]:
    verdict = report.verdict
    lines = [verdict.text, *([f"Next: {verdict.next}"] if verdict.next else [])]
    return [options.spelt(line) for line in lines]

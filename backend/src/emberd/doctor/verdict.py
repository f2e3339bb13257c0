"""Whether a server of the wanted model can be had, and the one next thing to type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from emberd.doctor.findings import Finding, Level, Part
from emberd.doctor.wanted import Wanted

# What stops everything, a server that runs included.
_ALWAYS: Final = (Part.SETTINGS, Part.SERVERS)
# Whose problem is to be mended first: without a disk no engine, without an engine no model.
_ORDER: Final = (
    *(*_ALWAYS, Part.STATE, Part.DISK, Part.GPU, Part.ENGINE, Part.MODEL, Part.MEMORY),
    *(Part.NETWORK, Part.SOFTWARE),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of an examination.

    Attributes:
        good: Whether a server of the wanted model can be had here.
        text: By what, or what is in the way.
        next: What to type or to do; empty when nothing is needed.
    """

    good: bool
    text: str
    next: str = ""


def judge(wanted: Wanted, findings: Sequence[Finding]) -> tuple[Verdict, list[Finding]]:
    """Return the verdict, and the findings as they are to be seen in its light.

    Where a server runs or is given, none has to be started: what would keep one from that is
    then a note.
    """
    problems = sorted(
        (f for f in findings if f.level is Level.PROBLEM), key=lambda f: _ORDER.index(f.part)
    )
    running = next((f.gives for f in findings if f.gives and f.part is Part.SERVERS), None)
    if problems and problems[0].part in _ALWAYS:
        return _bad(wanted, problems[0]), list(findings)
    if running is not None:
        return Verdict(True, running), [_eased(finding) for finding in findings]
    if problems:
        return _bad(wanted, problems[0]), list(findings)
    started = next((f.gives for f in findings if f.gives), None)
    if started is None:
        return Verdict(False, f"No server of {wanted.spec.model} is sure to be had here"), [
            *findings
        ]
    return Verdict(True, started), list(findings)


def _bad(wanted: Wanted, first: Finding) -> Verdict:
    text = f"No server of {wanted.spec.model} can be had here yet: {first.fact}"
    return Verdict(False, text, first.advice)


def _eased(finding: Finding) -> Finding:
    if finding.level is not Level.PROBLEM or finding.part in _ALWAYS:
        return finding
    return replace(finding, level=Level.NOTE)

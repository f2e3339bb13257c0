"""The checks, in their order: run at once, for a bounded time, and freed of secrets."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final

from emberd import env
from emberd.doctor import engines, environment, gpu, host, model, servers, wanted
from emberd.doctor.findings import Finding, Level, Outcome, Part, gather, note, problem
from emberd.doctor.wanted import Wanted
from emberd.errors import StateFolderError
from emberd.manager import paths
from emberd.manager.state import read_record
from emberd.system.redaction import Redact, redactor, secrets, shortener

Check = Callable[[Wanted], Iterable[Finding]]

READING_S: Final = 2.0
CHECKS_S: Final = 5.5
KEYS_S: Final = 1.5
"""Together they stay below ten seconds, whatever hangs."""

CHECKS: Final[Mapping[Part, tuple[Check, ...]]] = MappingProxyType(
    {
        Part.SOFTWARE: (host.check_software,),
        Part.SETTINGS: (environment.check_variables,),
        Part.SERVERS: (servers.check_servers,),
        Part.ENGINE: (engines.check_engine, engines.check_installs),
        Part.GPU: (gpu.check_gpus, gpu.check_gpu_memory, gpu.check_compilers),
        Part.MODEL: (model.check_model,),
        Part.MEMORY: (host.check_limits,),
        Part.DISK: (host.check_disks,),
        Part.STATE: (servers.check_state,),
        Part.NETWORK: (servers.check_network,),
    }
)
"""What is looked at -> the checks of it. Each part is shown in this order."""


@dataclass(frozen=True, slots=True)
class Report:
    """What an examination found; no secret stands in it.

    Attributes:
        wanted: Fields of the server that was asked for, and where emberd keeps things.
        findings: What was looked at, by part.
        verdict: Whether a server can be had, and what to type next.
        seconds: How long it took.
    """

    wanted: Mapping[str, str | None]
    findings: tuple[Finding, ...]
    verdict: Verdict
    seconds: float


def examine(
    given: Mapping[str, str] = MappingProxyType({}),
    checks: Mapping[Part, tuple[Check, ...]] = CHECKS,
) -> Report:
    """Look at this machine, and return what is wrong with it and what to type.

    Starts nothing, and returns in less than ten seconds.

    Args:
        given: Options of the command line: model, revision, engine, device.
        checks: What is looked at, by part.
    """
    begun_s = time.monotonic()
    asked = _read(given)
    jobs = [(part, check) for part, several in checks.items() for check in several]
    outcomes = gather([partial(_run, check, asked) for _, check in jobs], CHECKS_S)
    found: list[Finding] = []
    for (part, check), outcome in zip(jobs, outcomes, strict=True):
        found += [replace(finding, part=part) for finding in _findings(check, outcome)]
    verdict, findings = judge(asked, found)
    redact = _redactor(asked)
    return Report(
        wanted={name: text and redact(text) for name, text in _asked(asked).items()},
        findings=tuple(_cleaned(finding, redact) for finding in findings),
        verdict=Verdict(verdict.good, redact(verdict.text), redact(verdict.next)),
        seconds=time.monotonic() - begun_s,
    )


def _read(given: Mapping[str, str]) -> Wanted:
    # The model's folder is looked at: it may be on a disk that is away.
    [outcome] = gather([partial(wanted.read, given)], READING_S)
    if outcome.value is not None:
        return outcome.value
    why = f"what is asked for cannot be read ({outcome.error!r})"
    if outcome.late:
        why = (
            f"The model's folder was not read within {READING_S:g} s. Is it on a disk that is "
            f"away? Give a copy on a local one: --model PATH"
        )
    return wanted.unread(given, why)


def _run(check: Check, asked: Wanted) -> list[Finding]:
    return list(check(asked))


def _findings(check: Check, outcome: Outcome[list[Finding]]) -> Iterator[Finding]:
    name = check.__module__.rpartition(".")[2]
    if outcome.late:
        yield problem(
            name,
            f"nothing was learnt within {CHECKS_S:g} s: something that it looks at hangs",
            "Is a network disk away, or a driver stuck? (dmesg)",
        )
    elif outcome.error is not None:
        yield note(name, f"the check failed: {outcome.error!r}", "This is a bug of emberd.")
    yield from outcome.value or ()


def _redactor(asked: Wanted) -> Redact:
    hide, shorten = redactor(more=_keys(asked)), shortener(_urls(asked))
    return lambda text: hide(shorten(text))


def _urls(asked: Wanted) -> list[str]:
    """Return URLs whose paths may be secrets, as they were written and as they are used."""
    listed = (env.text("EMBERD_DISCOVER") or "").replace(",", " ").split()
    given = ((env.text("EMBERD_BASE_URL") or "").strip(), asked.base_url)
    return [url for url in (*given, *listed, *asked.places.discover) if url]


def _keys(asked: Wanted) -> Iterator[str]:
    """Yield keys that must not be seen: the user's, and those of running servers."""
    yield from secrets(asked.options.arguments)
    if asked.api_key:
        yield asked.api_key
    [outcome] = gather([partial(_recorded, asked.home)], KEYS_S)
    yield from outcome.value or ()


def _recorded(home: Path) -> list[str]:
    own = paths.Home(Path(os.path.realpath(home)))
    keys = []
    for folder in own.all_server_folders():
        with suppress(StateFolderError):  # one folder that cannot be read hides no other's key
            kept = read_record(folder)
            if kept is not None and kept.endpoint is not None and kept.endpoint.api_key:
                keys.append(kept.endpoint.api_key)
    return keys


def _asked(asked: Wanted) -> dict[str, str | None]:
    spec = asked.spec
    return {
        "model": spec.model,
        "revision": spec.revision,
        "engine": spec.engine,
        "device": spec.device,
        "base_url": asked.base_url,
        "home": asked.places.home,
        "engines": asked.places.engines,
    }


def _cleaned(finding: Finding, redact: Redact) -> Finding:
    return replace(
        finding,
        fact=redact(finding.fact),
        advice=redact(finding.advice),
        gives=redact(finding.gives),
    )


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

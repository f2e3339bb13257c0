"""Runs all checks concurrently, removes secrets from their findings, and draws the verdict."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final

from emberd import env
from emberd.catalog import EMBED, RERANK
from emberd.doctor import engines, gpu, host, model, servers, wanted
from emberd.doctor.findings import Finding, LateError, Level, Part, gather, note, problem
from emberd.doctor.wanted import Wanted
from emberd.errors import StateFolderError
from emberd.manager import paths
from emberd.manager.state import read_record
from emberd.system.redaction import Redact, redactor, secrets, shortener

Check = Callable[[Wanted], Iterable[Finding]]

READING_S: Final = 2.0
CHECKS_S: Final = 5.5
KEYS_S: Final = 1.5
"""The three limits add up to less than ten seconds."""

CHECKS: Final[Mapping[Part, tuple[Check, ...]]] = MappingProxyType(
    {
        Part.SOFTWARE: (host.check_software,),
        Part.SETTINGS: (wanted.check_variables,),
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
"""Part -> its checks, in the order of the report."""


_WANTED: Final = ("model", "task", "revision", "quantization", "engine", "device")


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a diagnosis. It contains no secret.

    Attributes:
        wanted: The requested server and emberd's folders, by field name.
        findings: All findings, in the order of their parts.
        verdict: Whether the model can be served, and what to do next.
        seconds: Duration of the diagnosis.
    """

    wanted: Mapping[str, str | None]
    findings: tuple[Finding, ...]
    verdict: Verdict
    seconds: float


def examine(
    given: Mapping[str, str] = MappingProxyType({}),
    checks: Mapping[Part, tuple[Check, ...]] = CHECKS,
) -> Report:
    """Diagnose this machine: report problems and the next command to type.

    Starts nothing and returns in less than ten seconds.

    Args:
        given: Command-line options by name: ``_WANTED``.
        checks: The checks to run, by part.
    """
    begun_s = time.monotonic()
    asked = _read(given)

    def run(check: Check) -> list[Finding]:
        return list(check(asked))

    jobs = [(part, check) for part, several in checks.items() for check in several]
    outcomes = gather([partial(run, check) for _, check in jobs], CHECKS_S)
    found: list[Finding] = []
    for (part, check), outcome in zip(jobs, outcomes, strict=True):
        found += [replace(finding, part=part) for finding in _findings(check, outcome)]
    verdict, findings = judge(asked, found)
    redact = _redactor(asked)
    about = {
        **{name: getattr(asked.spec, name) for name in _WANTED},
        "base_url": asked.base_url,
        "home": asked.places.home,
        "engines": asked.places.engines,
    }
    return Report(
        wanted={name: text and redact(text) for name, text in about.items()},
        findings=tuple(
            replace(
                finding,
                fact=redact(finding.fact),
                advice=redact(finding.advice),
                gives=redact(finding.gives),
            )
            for finding in findings
        ),
        verdict=Verdict(verdict.good, redact(verdict.text), redact(verdict.next)),
        seconds=time.monotonic() - begun_s,
    )


def _read(given: Mapping[str, str]) -> Wanted:
    # Reads the model's folder, which may be on a network disk that does not answer.
    [outcome] = gather([partial(wanted.read, given)], READING_S)
    if isinstance(outcome, Wanted):
        return outcome
    why = f"the settings could not be read ({outcome!r})"
    if isinstance(outcome, LateError):
        why = (
            f"The model's folder could not be read within {READING_S:g} s. Is it on a network disk "
            f"that does not answer? Use a copy on a local disk: --model PATH"
        )
    return wanted.unread(given, why)


def _findings(check: Check, outcome: list[Finding] | BaseException) -> list[Finding]:
    if isinstance(outcome, list):
        return outcome
    name = check.__module__.rpartition(".")[2]
    if isinstance(outcome, LateError):
        fact = f"the check did not finish within {CHECKS_S:g} s"
        advice = "Look for a network disk or a driver that does not respond (dmesg)."
        return [problem(name, fact, advice)]
    return [note(name, f"the check failed: {outcome!r}", "This is a bug in emberd.")]


def _redactor(asked: Wanted) -> Redact:
    [recorded] = gather([partial(_recorded, asked.home)], KEYS_S)
    keys = recorded if isinstance(recorded, list) else []
    keys += [*secrets(asked.options.arguments), *([asked.api_key] if asked.api_key else [])]
    # The paths of URLs may be secrets too; the URLs as given, and as normalised.
    variables = [env.setting_variable("base_url", task) for task in (EMBED, RERANK)]
    urls = [*map(env.text, variables), asked.base_url, *asked.places.discover]
    urls += (env.text("EMBERD_DISCOVER") or "").replace(",", " ").split()
    hide, shorten = redactor(more=keys), shortener(url.strip() for url in urls if url)
    return lambda text: hide(shorten(text))


def _recorded(home: Path) -> list[str]:
    """Return the keys of running servers."""
    own = paths.Home(Path(os.path.realpath(home)))
    keys = []
    for folder in own.all_server_folders():
        with suppress(StateFolderError):  # the keys of the other folders are still read
            kept = read_record(folder)
            if kept is not None and kept.endpoint is not None and kept.endpoint.api_key:
                keys.append(kept.endpoint.api_key)
    return keys


# Problems that prevent even the use of a running server.
_ALWAYS: Final = (Part.SETTINGS, Part.SERVERS)
# The order in which problems must be fixed: an engine needs disk space, a model needs an engine.
_ORDER: Final = (
    *(*_ALWAYS, Part.STATE, Part.DISK, Part.GPU, Part.ENGINE, Part.MODEL, Part.MEMORY),
    *(Part.NETWORK, Part.SOFTWARE),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The conclusion of a diagnosis.

    Attributes:
        good: Whether the requested model can be served on this machine.
        text: How it is served, or the first problem that prevents it.
        next: Next command or step; empty if none is needed.
    """

    good: bool
    text: str
    next: str = ""


def judge(wanted: Wanted, findings: Sequence[Finding]) -> tuple[Verdict, list[Finding]]:
    """Return the verdict, and the findings with their levels adjusted to it.

    If a server is running or given, none has to be started, so problems that would prevent a
    start become notes. If the given one cannot be used, it is the problem, because no other is
    started.
    """
    problems = sorted(
        (f for f in findings if f.level is Level.PROBLEM), key=lambda f: _ORDER.index(f.part)
    )
    running = next((f.gives for f in findings if f.gives and f.part is Part.SERVERS), None)
    needless = [f for f in problems if f.part not in _ALWAYS]
    eased = [replace(f, level=Level.NOTE) if f in needless else f for f in findings]
    if running is not None and len(needless) == len(problems):
        return Verdict(True, running), eased
    model = wanted.spec.model
    if problems and problems[0].part in _ALWAYS and wanted.base_url is not None:
        text = f"The server for {model} cannot be used yet: {problems[0].fact}"
        return Verdict(False, text, problems[0].advice), eased
    if problems:
        text = f"{model} cannot be served on this machine yet: {problems[0].fact}"
        return Verdict(False, text, problems[0].advice), list(findings)
    started = next((f.gives for f in findings if f.gives), None)
    if started is None:
        text = f"Cannot tell whether {model} can be served on this machine"
        return Verdict(False, text), list(findings)
    return Verdict(True, started), list(findings)

"""Runs parts one after another, each in a process with its own time limit.

A part is a function that takes a ``Bench`` and a ``Report``. It runs in a process that leads a
session, so that all it started can be ended with it; a server's supervisor leads a session of its
own, and outlives the part that started it: parts share servers.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from gpu.result import Kind, Result, Why, read_json, write_json

RESERVED_S: Final = 15.0
"""Kept of the budget for the table, and for what has to run whatever happened before."""

_RUN: Final = Path(__file__).with_name("run.py")
_DETAIL_CHARS: Final = 4000
_GRACE_S: Final = 5.0
_KEY: Final = re.compile(r"(api_key=['\"])[^'\"]+")  # SGLang writes it into its log


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the run.

    Attributes:
        name: Its name, as ``--parts`` takes it.
        function: Where it is: ``module:function``.
        claim: What it shows, in a few words.
        expected_s: Device -> how long it should take; it is skipped where less is left. A device
            that is not named cannot show it.
        limit_s: Device -> how long it is given.
        needs: Files in the work folder without which it cannot run, and the part that makes each.
        not_here: Why the other devices cannot show it.
        always: It runs whatever time is left.
    """

    name: str
    function: str
    claim: str
    expected_s: Mapping[str, float]
    limit_s: Mapping[str, float]
    needs: Mapping[str, str]
    not_here: str = ""
    always: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """What parts share.

    Attributes:
        folder: All files of the run.
        device: ``cuda`` or ``cpu``.
        deadline_s: When the budget ends, on the monotonic clock.
    """

    folder: Path
    device: str
    deadline_s: float

    @property
    def results(self) -> Path:
        """The folder of the parts' own files and logs."""
        return self.folder / "results"


def run(parts: Sequence[Part], work: Work, chosen: Sequence[str]) -> Iterator[Result]:
    """Run parts in their order, and yield each result at once.

    Args:
        parts: All that there are.
        work: Where, on what, and until when.
        chosen: Names of those that are to run; none for all.
    """
    work.results.mkdir(parents=True, exist_ok=True)
    for part in parts:
        yield _unfit(part, work, chosen) or _run(part, work)


def plan(parts: Sequence[Part], device: str, budget_s: float, chosen: Sequence[str] = ()) -> str:
    """Return what would run on a device, how long it should take, and how long it is given."""
    lines = []
    expected = limit = 0.0
    for part in parts:
        name = f"{part.name:<14}"
        if chosen and part.name not in chosen:
            continue
        if device not in part.limit_s:
            lines.append(f"{name}  not on {device}: {part.not_here}")
            continue
        lines.append(
            f"{name}  expected {part.expected_s[device]:4.0f} s, at most "
            f"{part.limit_s[device]:4.0f} s  {part.claim}"
        )
        expected += part.expected_s[device]
        limit += part.limit_s[device]
    lines.append(
        f"{'all':<14}  expected {expected:4.0f} s, at most {limit:4.0f} s, and never more than the "
        f"budget of {budget_s:.0f} s"
    )
    return "\n".join(lines)


def _unfit(part: Part, work: Work, chosen: Sequence[str]) -> Result | None:
    if chosen and part.name not in chosen:
        return Result(part.name, Kind.SKIPPED, "not asked for", why=Why.NOT_HERE)
    if work.device not in part.limit_s:
        return Result(part.name, Kind.SKIPPED, part.not_here, why=Why.NOT_HERE)
    for file, maker in part.needs.items():
        if not (work.folder / file).exists():
            reason = f"{maker} did not make what it needs ({file})"
            return Result(part.name, Kind.SKIPPED, reason, why=Why.NOT_RUN)
    left, wanted = _left_s(work), part.expected_s[work.device]
    if left < wanted and not part.always:
        reason = f"no time left: it takes about {wanted:.0f} s, and {max(0.0, left):.0f} s is left"
        return Result(part.name, Kind.SKIPPED, reason, why=Why.NOT_RUN)
    return None


def _left_s(work: Work) -> float:
    return work.deadline_s - time.monotonic() - RESERVED_S


def _run(part: Part, work: Work) -> Result:
    limit_s = part.limit_s[work.device]
    if not part.always:
        limit_s = min(limit_s, _left_s(work))
    path, log = work.results / f"{part.name}.json", work.results / f"{part.name}.log"
    path.unlink(missing_ok=True)
    command = [sys.executable, str(_RUN), "--child", part.function, "--work", str(work.folder)]
    command += ["--result", str(path), "--limit", f"{limit_s:.1f}"]
    began = time.monotonic()
    with log.open("wb") as output:
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = popen.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(popen)
    seconds = time.monotonic() - began
    return _result(part, path, log, code, seconds, limit_s)


def _end(popen: subprocess.Popen[bytes]) -> None:
    """End the part's process and all that it started, but for sessions of their own."""
    with suppress(psutil.Error):
        for child in psutil.Process(popen.pid).children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    # The group keeps its id for as long as a process is in it: no other can have taken it.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(popen.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        popen.wait(_GRACE_S)


def _result(
    part: Part, path: Path, log: Path, code: int | None, seconds: float, limit_s: float
) -> Result:
    found = read_json(path)
    figures, problems = found.get("figures", {}), list(found.get("problems", ()))
    said = log.read_text(encoding="utf-8", errors="replace").strip()
    if skipped := found.get("skipped"):
        why = Why(found["why"])
        return Result(part.name, Kind.SKIPPED, skipped, seconds, limit_s, figures, why)
    if code is None:
        problems.append(f"it was ended after its {limit_s:.0f} s")
    elif not found.get("ended"):
        last = said.splitlines()[-1] if said else "it said nothing"
        problems.append(f"exit code {code}: {last}")
    if problems:
        summary, detail = "; ".join(problems), f"{said[-_DETAIL_CHARS:]}\n{_server_log(path)}"
        return Result(part.name, Kind.FAILED, summary, seconds, limit_s, figures, detail=detail)
    return Result(part.name, Kind.PASSED, found["summary"], seconds, limit_s, figures)


def _server_log(result: Path) -> str:
    """Return the end of the newest log of a server: the files of the run may not outlive it."""
    logs = list(result.parents[1].glob("home/*/servers/*/server.log"))
    if not logs:
        return ""
    newest = max(logs, key=lambda log: log.stat().st_mtime)
    text = newest.read_text(encoding="utf-8", errors="replace")
    told = _KEY.sub(r"\1...", text[-_DETAIL_CHARS:])
    return f"the end of {newest.parent.name}/{newest.name}:\n{told}"


def keep(path: Path, header: Mapping[str, object], results: Sequence[Result]) -> None:
    """Write the results so far, with what they were found on, to a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    counts = {kind.value: sum(result.kind is kind for result in results) for kind in Kind}
    write_json(
        path, {**header, "counts": counts, "parts": [result.as_content() for result in results]}
    )


def exit_code(results: Sequence[Result]) -> int:
    """Return 1 where a part failed, 2 where one that should have run did not, else 0."""
    if any(result.kind is Kind.FAILED for result in results):
        return 1
    return 2 if any(result.why is Why.NOT_RUN for result in results) else 0

"""Parts about starts: the first one, one for many, and the deaths of a server's processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

import leftovers
from emberd import Embedder, StartError
from emberd.cli import output
from gpu import card, compare
from gpu.bench import CUDA, Bench, Vectors
from gpu.card import GIB
from gpu.machine import SHORT_TOKENS, planned
from gpu.result import Report

MAIN: Final = "sglang.launch_server"
SCHEDULER: Final = "sglang::scheduler"

_ASKER: Final = Path(__file__).with_name("asker.py")
_LEAST_COSINE: Final = 0.995  # bfloat16 kernels give other numbers for other batches
_BACK_S: Final = 30.0
_INGEST: Final = "ingest"


def first_start(bench: Bench, report: Report) -> None:
    """Start the server that the next parts share, nothing compiled yet; tell its phases."""
    report.figure("plan_gib", planned(bench))
    if bench.device == CUDA:
        report.figure("used_before_gib", round((card.used_bytes() or 0) / GIB, 3))
    began = time.monotonic()
    try:
        server = bench.embedder().ensure()
    except StartError as error:
        # This part has failed; but the next ones need a server, and can show what they are for.
        report.require(False, f"{error}")
        spec = bench.embedder().settings.spec
        server = bench.manager.ensure(
            spec, start_timeout=bench.left_s, idle_timeout=None, retry_failed=True
        )
    seconds = time.monotonic() - began
    phases = _tell_start(bench, report, seconds)
    report.figure("start_id", server.start_id)
    report.figure("context_tokens", server.endpoint.context_tokens)
    report.require(server.started, f"it was not started: {server.reason}")
    if bench.device == CUDA:
        report.figure("used_gib", round((card.used_bytes() or 0) / GIB, 3))
    report.summary = f"ready after {seconds:.1f} s, {phases}"


def stampede(bench: Bench, report: Report) -> None:
    """Let many processes want a server at the same instant: one server, and one copy in memory."""
    bench.manager.stop()
    count = bench.sizes.askers
    command = [sys.executable, str(_ASKER), bench.model, bench.device, f"{bench.left_s:.0f}"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    asking = [subprocess.Popen(command, **pipes) for _ in range(count)]
    for process in asking:
        assert process.stdout is not None
        process.stdout.readline()  # it has loaded all that it needs
    began = time.monotonic()
    for process in asking:
        assert process.stdin is not None
        process.stdin.write("now\n")
        process.stdin.flush()
    said = [process.communicate(timeout=bench.left_s)[0] for process in asking]
    seconds = time.monotonic() - began
    answers = [json.loads(text) for text in said if text.strip()]
    report.figure("processes", count)
    phases = _tell_start(bench, report, seconds)
    report.require(len(answers) == count, f"{len(answers)} of {count} processes got a vector")
    if not answers:
        return
    servers = len({answer["start_id"] for answer in answers})
    report.require(servers == 1, f"{servers} servers were used")
    started = sum(answer["started"] for answer in answers)
    report.require(started == 1, f"{started} processes say that they started a server")
    mains = _parts(bench, MAIN)
    report.require(len(mains) == 1, f"{len(mains)} servers run")
    vectors = np.array([answer["vector"] for answer in answers], np.float32)
    alike = compare.spread(vectors, np.repeat(vectors[:1], len(vectors), axis=0))
    report.require(alike["min"] >= _LEAST_COSINE, f"their vectors differ: cosine {alike['min']}")
    report.figure("last_s", round(max(answer["seconds"] for answer in answers), 1))
    _require_one_copy(bench, report)
    report.summary = (
        f"{len(answers)} processes, {servers} server, the last served after "
        f"{report.figures['last_s']} s, {phases}"
    )


def kill_scheduler(bench: Bench, report: Report) -> None:
    """Kill -9 the scheduler during an ingest: the ingest goes on with a new server."""
    _killed(bench, report, lambda: _pid(_parts(bench, SCHEDULER)), "scheduler")


def kill_supervisor(bench: Bench, report: Report) -> None:
    """Kill -9 the process that keeps the server, during an ingest: likewise."""

    def pid() -> int | None:
        ready = [own.supervisor_pid for own in bench.manager.status() if own.state == "ready"]
        return ready[0] if ready else None

    _killed(bench, report, pid, "supervisor")


def _killed(bench: Bench, report: Report, pid: Callable[[], int | None], name: str) -> None:
    embedder = bench.shared()
    texts = bench.texts(SHORT_TOKENS)[: bench.sizes.ingest]
    before = bench.kept(_INGEST)
    if before is None:
        before = embedder.embed_documents(texts)
        bench.keep(_INGEST, before)
    first = embedder.ensure()
    began = time.monotonic()
    vectors, killed = _ingest(embedder, texts, pid)
    seconds = time.monotonic() - began
    report.figure("texts", len(texts))
    report.require(killed is not None, f"no {name} was found to be killed")
    report.require(killed is None or not _lives(killed), f"the {name} lives after kill -9")
    # Before any other call, because each of them would start a server.
    ready = [own.start_id for own in bench.manager.status() if own.state == "ready"]
    healed = len(ready) == 1 and ready[0] != first.start_id
    report.require(healed, "the ingest ended without a new server: it was over before the kill")
    _tell_start(bench, report, seconds)
    found = compare.spread(before, vectors)
    report.figure("cosine_to_before", found)
    report.require(found["min"] >= _LEAST_COSINE, f"vectors differ: least cosine {found['min']}")
    wrong = compare.misplaced(vectors, before)
    report.require(not wrong, f"vectors in the wrong place: {wrong[:5]}")
    mains = _parts(bench, MAIN)
    report.require(len(mains) == 1, f"{len(mains)} servers run")
    _require_one_copy(bench, report)
    report.summary = (
        f"{len(texts):,} texts embedded in {seconds:.1f} s, the start of a new server included; "
        f"least cosine to the vectors before {found['min']}; {_card_words(report)}"
    )


def _ingest(
    embedder: Embedder, texts: list[str], pid: Callable[[], int | None]
) -> tuple[Vectors, psutil.Process | None]:
    """Embed texts, and kill a process when the first vectors have come.

    Returns:
        The vectors, and the process; None where there was none to kill.
    """
    rows: list[Vectors] = []
    killed: psutil.Process | None = None
    # A thousand vectors come at a time, while the requests of the next two thousand are sent.
    for vector in embedder.iter_documents(texts):
        if not rows and (found := pid()) is not None:
            killed = psutil.Process(found)
            killed.kill()
        rows.append(vector)
    return np.stack(rows), killed


def _lives(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _tell_start(bench: Bench, report: Report, seconds: float) -> str:
    """Report the phases of the start of the server that is ready; return them in words."""
    ready = [own.phases for own in bench.manager.status() if own.state == "ready"]
    phases = dict(ready[0]) if ready else {}
    report.figure("seconds", round(seconds, 1))
    report.figure("phases_s", phases)
    last = next(reversed(phases), "none")
    report.require(last == "verifying", f"the last recorded phase of the start is {last}")
    return output.start_phases(phases)


def _require_one_copy(bench: Bench, report: Report) -> None:
    """Require that the GPU holds no more than the first server took."""
    first = bench.figures("first_start").get("used_gib")
    if bench.device != CUDA or first is None:
        return
    # What a server takes grows with its first requests: the caches of its allocator.
    loaded = bench.figures("memory").get("used_gib")
    if loaded is None:
        loaded = bench.figures("first_start").get("plan_gib", {}).get("memory", 0.0)
    before = bench.figures("first_start").get("used_before_gib", 0.0)
    limit = round(max(first, loaded + before) * GIB) + card.SLACK_BYTES
    taken = card.settles(limit, _BACK_S) or 0
    report.figure("used_gib", round(taken / GIB, 2))
    report.require(taken <= limit, f"{taken / GIB:.2f} GiB is taken, {limit / GIB:.2f} by one copy")


def _card_words(report: Report) -> str:
    if "used_gib" not in report.figures:
        return "one server runs"
    return f"one server runs, {report.figures['used_gib']} GiB of the GPU in use"


def _parts(bench: Bench, name: str) -> list[psutil.Process]:
    found = []
    for process in leftovers.find([str(bench.home)]):
        with suppress(psutil.Error):
            if any(name in word for word in process.cmdline()):
                found.append(process)
    return found


def _pid(processes: list[psutil.Process]) -> int | None:
    return processes[0].pid if processes else None

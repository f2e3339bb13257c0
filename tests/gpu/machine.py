"""Parts about the machine: the checkpoint, doctor, the memory plan, a full card, the end."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import psutil

import leftovers
from emberd import StartError
from gpu import card
from gpu.bench import CPU, CUDA, NO_INSTRUCTION, Bench, foreign_environment
from gpu.card import GIB
from gpu.result import Report
from real.texts import BLANK, TEXTS

QUERIES: Final = (
    "How do I find out which process holds the memory of my graphics card?",
    "如何选择合适的嵌入模型？",
)
SHORT_TOKENS: Final = 16

_STOP_S: Final = 30.0
_END_S: Final = 20.0
_LEFT_FREE_BYTES: Final = 2 * GIB
_FULL_S: Final = 60.0
_PLANNED: Final = re.compile(
    r"(?P<what>weights|KV cache|activations|overhead|memory) (?P<gib>\d+\.\d+) GiB"
)
_END_OF_TEXT: Final = "<|endoftext|>"  # two of it have the vector of one, which is that of ""
_WORDS: Final = ("the", "retrieval", "of", "passages", "answers", "a", "question", "vector")


def documents(bench: Bench) -> list[str]:
    """Return the texts that are compared with the reference, of all languages and lengths."""
    lengths = (30, 30, 300, 300, bench.sizes.long_words)
    made = [
        " ".join(f"{_WORDS[(place + number) % len(_WORDS)]}" for place in range(words))
        + f" number {number}"
        for number, words in enumerate(lengths)
    ]
    return [*(text for text in TEXTS if text not in (BLANK, _END_OF_TEXT)), "", *made]


def model(bench: Bench, report: Report) -> None:
    """Make the checkpoint, texts of known length, and the reference's vectors."""
    sizes = bench.sizes
    counts = {str(tokens): count for tokens, count in sizes.bulk.items()}
    counts[str(SHORT_TOKENS)] = max(sizes.ingest, sizes.bulk[SHORT_TOKENS])
    asked = {
        "shape": bench.shape,
        "device": bench.device,
        "texts": counts,
        "documents": documents(bench),
        "queries": QUERIES,
    }
    bench.ask("checkpoint.py", str(bench.folder), given=asked)
    report.figure("shape", bench.shape)
    with np.load(bench.folder / "reference.npz") as found:
        report.figure("texts", len(found["tokens"]))
        report.figure("tokens_longest", int(found["tokens"].max()))
        report.figure("dimensions", int(found["float32"].shape[1]))
    report.summary = (
        f"random weights in the shape of {bench.shape}; a reference of "
        f"{report.figures['texts']} texts of up to {report.figures['tokens_longest']:,} tokens"
    )


def doctor(bench: Bench, report: Report) -> None:
    """Run ``emberd doctor``: a server of the model can be started here."""
    done = bench.emberd(
        *("doctor", "--json", "--model", bench.model),
        *("--engine", "sglang", "--device", bench.device),
    )
    found = json.loads(done.stdout)
    problems = [each["fact"] for each in found["findings"] if each["level"] == "problem"]
    report.figure("verdict", found["verdict"])
    report.figure("seconds", found["seconds"])
    report.figure("findings", found["findings"])
    report.require(found["ok"], f"no server can be started here: {found['verdict']}")
    report.summary = (
        f"{len(found['findings'])} findings in {found['seconds']:.1f} s, problems: "
        f"{'; '.join(problems) or 'none'}. {found['verdict']}"
    )


def planned(bench: Bench) -> dict[str, float]:
    """Return what ``emberd up --dry-run`` plans to take of the device, in GiB.

    Raises:
        RuntimeError: It makes no plan; the text says why.
    """
    done = _dry_run(bench)
    if done.returncode != 0:
        raise RuntimeError(f"emberd up --dry-run: {done.stderr.strip()}")
    reasons = json.loads(done.stdout)["reasons"]
    matches = (_PLANNED.fullmatch(reason["what"]) for reason in reasons)
    return {found["what"]: float(found["gib"]) for found in matches if found}


def memory(bench: Bench, report: Report) -> None:
    """Compare what was planned with what the server has taken after all that was asked of it."""
    bench.shared(query_instruction=NO_INSTRUCTION)
    plan = bench.figures("first_start").get("plan_gib", {})
    report.figure("plan_gib", plan)
    report.require("memory" in plan, "the plan has no sum")
    if bench.device == CPU:
        taken = sum(_own_bytes(process) for process in leftovers.find([str(bench.home)]))
        how = "USS of all its processes; not required on a CPU"
    else:
        before = bench.figures("first_start").get("used_before_gib", 0.0)
        taken = (card.used_bytes() or 0) - round(before * GIB)
        how = "NVML, less what was taken before the start"
    used = round(taken / GIB, 2)
    report.figure("used_gib", used)
    report.figure("how", how)
    need = plan.get("memory", 0.0)
    # Private memory of a process cannot be told apart from memory that it shares.
    ok = used <= need or bench.device == CPU
    report.require(ok, f"{used:.2f} GiB is taken, more than the plan's {need:.1f} GiB")
    report.figure("plan_by_used", round(need / used, 3))
    report.summary = f"planned {need:.1f} GiB, taken {used:.2f} GiB ({how})"


def stop(bench: Bench, report: Report) -> None:
    """Stop the shared server with ``emberd stop``: no process, no GPU memory is left."""
    done = bench.emberd("stop", "--json")
    report.require(done.returncode == 0, f"emberd stop: {done.stderr.strip()}")
    _require_all_back(bench, report)
    report.summary = f"no process left, {_of_the_card(report)}"


def full_card(bench: Bench, report: Report) -> None:
    """Start a server on a GPU that another process has filled: a typed error, nothing left."""
    bench.manager.stop()
    with _filled(bench) as free_bytes:
        report.figure("free_gib", round(free_bytes / GIB, 2))
        dry = _dry_run(bench)
        said = dry.stderr.strip()
        report.figure("dry_run", said)
        report.require(dry.returncode != 0, "the dry run plans a server that cannot fit")
        report.require("GiB" in said and "free" in said, f"the dry run does not say why: {said}")
        held = card.used_bytes() or 0
        try:
            bench.embedder().ensure()
        except StartError as error:
            report.figure("error", str(error))
            about_memory = "GiB" in error.cause and "free" in error.cause
            report.require(about_memory, f"the error does not speak of memory: {error}")
            report.require(bool(error.advice), f"the error has no advice: {error}")
        else:
            report.require(False, "a server was started on a full card")
        left = _wait_for_end(bench)
        report.require(not left, f"left behind: {left}")
        taken = card.settles(held + card.SLACK_BYTES, _STOP_S) or 0
        report.require(taken <= held + card.SLACK_BYTES, "memory is taken after the failed start")
    _require_all_back(bench, report)
    report.summary = f"with {report.figures['free_gib']} GiB free: {report.figures.get('error')}"


def nothing_left(bench: Bench, report: Report) -> None:
    """Stop all servers that still run: no process, no GPU memory is left."""
    running = [own.spec.model for own in bench.manager.status() if own.state == "ready"]
    report.figure("stopped", len(running))
    bench.manager.stop()
    _require_all_back(bench, report)
    for line in leftovers.end_all([str(bench.home)]):
        report.require(False, f"had to be killed: {line.strip()}")
    report.summary = f"{len(running)} stopped, no process left, {_of_the_card(report)}"


def _require_all_back(bench: Bench, report: Report) -> None:
    left = _wait_for_end(bench)
    report.require(not left, f"left behind: {left}")
    if bench.device != CUDA:
        return
    before = bench.figures("first_start").get("used_before_gib")
    if before is None:
        return
    limit = round(before * GIB) + card.SLACK_BYTES
    taken = card.settles(limit, _STOP_S) or 0
    report.figure("used_after_gib", round(taken / GIB, 2))
    report.require(taken <= limit, f"{taken / GIB:.2f} GiB of the GPU is still in use")


def _of_the_card(report: Report) -> str:
    if "used_after_gib" not in report.figures:
        return "no GPU"
    return f"{report.figures['used_after_gib']:.2f} GiB of the GPU in use"


def _wait_for_end(bench: Bench) -> list[str]:
    home = str(bench.home)
    card.wait_until(lambda: not leftovers.find([home]), _END_S)
    return [f"{process.pid} {process.name()}" for process in leftovers.find([home])]


def _own_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().uss)
    except psutil.Error:
        return 0


def _dry_run(bench: Bench) -> subprocess.CompletedProcess[str]:
    return bench.emberd(
        *("up", "--dry-run", "--json", "--model", bench.model),
        *("--engine", "sglang", "--device", bench.device),
    )


@contextmanager
def _filled(bench: Bench) -> Iterator[int]:
    """Fill the card by a process of another program; give how many bytes are free."""
    filler = subprocess.Popen(
        bench.script("fill_card.py", str(_LEFT_FREE_BYTES)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=foreign_environment(),
    )
    assert filler.stdin is not None
    assert filler.stdout is not None
    try:
        said: dict[str, Any] = json.loads(filler.stdout.readline() or "{}")
        if "free" not in said:
            raise RuntimeError("the card could not be filled")
        yield int(said["free"])
    finally:
        filler.stdin.close()
        try:
            filler.wait(_FULL_S)
        except subprocess.TimeoutExpired:
            filler.kill()

"""CPU seconds of the processes of a server, by what each is in SGLang."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil

import leftovers

CLIENT: Final = "client"
# What a command line contains, and the process that has it; SGLang gives two of them titles.
_KINDS: Final = {
    "sglang::scheduler": "scheduler",
    "sglang::detokenizer": "detokenizer",
    "sglang.launch_server": "main",
}
KINDS: Final = (*_KINDS.values(), CLIENT)


def used_by(home: Path, call: Callable[[], Any], count: int) -> dict[str, float]:
    """Call ``call``, which embeds ``count`` texts by the server whose state is in ``home``.

    Returns:
        Process -> CPU seconds for 1,000 texts, this process included, and ``texts/s``.
    """
    processes = {process: _kind(process) for process in leftovers.find([str(home)])}
    before = {process: _seconds(process) for process in processes}
    own, began = time.process_time(), time.perf_counter()
    kept = call()
    taken, own = time.perf_counter() - began, time.process_time() - own
    del kept
    used = dict.fromkeys((*KINDS, "other"), 0.0) | {CLIENT: own}
    for process, kind in processes.items():
        used[kind] += _seconds(process) - before[process]
    figures = {kind: 1000 * used[kind] / count for kind in KINDS}
    return {**figures, "texts/s": count / taken}


def _kind(process: psutil.Process) -> str:
    words = ""
    with suppress(psutil.Error):
        words = " ".join(process.cmdline())
    return next((kind for part, kind in _KINDS.items() if part in words), "other")


def _seconds(process: psutil.Process) -> float:
    with suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0

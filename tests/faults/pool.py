"""Runs jobs in processes of their own, several at once: each has a folder, and can be a world."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

T = TypeVar("T")

_JOB_S: Final = 7200.0
_POLL_S: Final = 0.02

Result = dict[str, Any]
"""What a job returns; it has failed if it says so under ``broken``, a list."""


def run(
    root: Path,
    jobs: Iterable[T],
    work: Callable[[Path, T], Result],
    *,
    width: int,
    seconds: float = float("inf"),
) -> Iterator[tuple[T, Result]]:
    """Yield the jobs with their results, as they come.

    Args:
        root: Folder for the jobs' folders; those of failed jobs are kept.
        jobs: The jobs.
        work: Does one, in a fork of this process, with the job's folder.
        width: How many run at once.
        seconds: No job begins after so long.
    """
    waiting = enumerate(jobs)
    running: dict[int, tuple[T, Path, float]] = {}
    until = time.monotonic() + seconds
    while True:
        while len(running) < width and time.monotonic() < until:
            if (following := next(waiting, None)) is None:
                break
            folder = root / str(following[0])
            folder.mkdir(mode=0o700)
            running[_begun(folder, following[1], work)] = (following[1], folder, time.monotonic())
        if not running:
            return
        pid, _ = os.waitpid(-1, os.WNOHANG)
        if pid in running:
            job, folder, _ = running.pop(pid)
            result = folder / "result.json"
            ended = {"broken": ["its process ended without a result"]}
            content = json.loads(result.read_text()) if result.exists() else ended
            if not content.get("broken"):
                shutil.rmtree(folder, ignore_errors=True)
            yield job, content
            continue
        for late, (_, _, began) in running.items():
            if time.monotonic() - began > _JOB_S:
                os.kill(late, signal.SIGKILL)
        time.sleep(_POLL_S)


def _begun(folder: Path, job: T, work: Callable[[Path, T], Result]) -> int:
    if pid := os.fork():
        return pid
    try:
        try:
            result = work(folder, job)
        except BaseException:  # noqa: BLE001 - a bug of the campaign is shown like a broken job
            result = {"broken": [traceback.format_exc()]}
        (folder / "result.json").write_text(json.dumps(result))
    finally:
        os._exit(0)

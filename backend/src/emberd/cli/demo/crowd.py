"""Many processes that want a server at the same time."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Final

from emberd.errors import EmberdError
from emberd.settings import Settings

PROCESSES: Final = 8
_MODULE: Final = "emberd.cli.demo.asker"


@dataclass(frozen=True, slots=True)
class Answer:
    """Which server a process got.

    Attributes:
        pid: The process.
        url: The server's root.
        start_id: The name of the server's start; None for a given server.
        seconds: How long the process asked.
    """

    pid: int
    url: str
    start_id: str | None
    seconds: float


def ask(settings: Settings, url: str, start_id: str | None) -> list[Answer]:
    """Return the answers of eight processes that were started at once.

    Raises:
        EmberdError: One failed, or got another server than ``url`` and ``start_id`` say.
    """
    wishes = json.dumps({"model": settings.model, "engine": settings.engine})
    command = [sys.executable, "-m", _MODULE, wishes]
    crowd = [
        subprocess.Popen(  # noqa: S603 - our own module
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(PROCESSES)
    ]
    answers = [_answer(process) for process in crowd]
    strays = [answer for answer in answers if (answer.url, answer.start_id) != (url, start_id)]
    if strays:
        raise EmberdError(
            f"Process {strays[0].pid} got {strays[0].url} (start {strays[0].start_id}) instead of "
            f"{url} (start {start_id}). Was the server stopped meanwhile? Look at `emberd status`."
        )
    return answers


def _answer(process: subprocess.Popen[str]) -> Answer:
    out, err = process.communicate()
    if process.returncode:
        reason = (err.strip().splitlines() or ["it wrote nothing"])[-1]
        raise EmberdError(f"Process {process.pid} got no server: {reason}. Look at `emberd logs`.")
    return Answer(**json.loads(out))

"""Processes that ask for the same server at the same time; each runs this module as a program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Final

from emberd import EmberdError, Manager, Server, Settings

PROCESSES: Final = 8


@dataclass(frozen=True, slots=True)
class Answer:
    """The server that a process got.

    Attributes:
        pid: The process.
        url: The server's root.
        start_id: Identifies one start of a server; None for a given server.
        seconds: How long the request took.
    """

    pid: int
    url: str
    start_id: str | None
    seconds: float


def ask(settings: Settings, server: Server) -> list[Answer]:
    """Start eight processes at once and return their answers.

    Raises:
        EmberdError: A process failed, or got another server than ``server``.
    """
    command = [sys.executable, __file__, settings.model, settings.engine or ""]
    processes = [
        subprocess.Popen(  # noqa: S603 - this module
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(PROCESSES)
    ]
    answers = [_answer(process) for process in processes]
    for answer in answers:
        if (answer.url, answer.start_id) != (server.endpoint.url, server.start_id):
            raise EmberdError(
                f"Process {answer.pid} got {answer.url} (start {answer.start_id}) instead of "
                f"{server.endpoint.url} (start {server.start_id}). Was the server stopped "
                f"in between? See `emberd status`."
            )
    return answers


def _answer(process: subprocess.Popen[str]) -> Answer:
    out, err = process.communicate()
    if process.returncode:
        reason = (err.strip().splitlines() or ["no error output"])[-1]
        raise EmberdError(f"Process {process.pid} got no server: {reason}. See `emberd logs`.")
    return Answer(**json.loads(out))


def _ask_once(model: str, engine: str | None) -> Answer:
    settings = Settings.resolve(model=model, engine=engine)
    started_s = time.perf_counter()
    server = Manager().ensure(
        settings.spec,
        base_url=settings.base_url,
        api_key=settings.api_key,
        start_timeout=settings.start_timeout,
        idle_timeout=settings.idle_timeout,
    )
    seconds = time.perf_counter() - started_s
    return Answer(os.getpid(), server.endpoint.url, server.start_id, seconds)


if __name__ == "__main__":
    answer = _ask_once(sys.argv[1], sys.argv[2] or None)
    names = ("pid", "url", "start_id", "seconds")
    print(json.dumps({name: getattr(answer, name) for name in names}))

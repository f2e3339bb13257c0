"""What a check returns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar


class Level(StrEnum):
    """How bad it is.

    A problem keeps a server from being had; a note is worth knowing, or matters to others only.
    """

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


class Part(StrEnum):
    """What a check looks at; findings are shown in this order."""

    SOFTWARE = "emberd"
    SETTINGS = "settings"
    SERVERS = "servers"
    ENGINE = "engine"
    GPU = "gpu"
    MODEL = "model"
    MEMORY = "memory and limits"
    DISK = "disk"
    STATE = "state"
    NETWORK = "network and clock"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What it is, in a word or two.
        level: How bad it is.
        fact: What was found, in one sentence without a full stop.
        advice: What to do about it, best a line to type; empty where there is nothing to do.
        gives: How a server can be had by this, for the verdict; empty where it gives none.
        part: What the check looked at.
    """

    name: str
    level: Level
    fact: str
    advice: str = ""
    gives: str = ""
    part: Part = Part.SOFTWARE


def split(text: str) -> tuple[str, str]:
    """Return the fact and the advice of an error of emberd's, which are sentences in this order."""
    fact, _, advice = text.strip().partition(". ")
    return fact.rstrip("."), advice


def ok(name: str, fact: str, *, gives: str = "") -> Finding:
    """Return a finding of what is as it should be."""
    return Finding(name, Level.OK, fact, gives=gives)


def note(name: str, fact: str, advice: str = "") -> Finding:
    """Return a finding that is worth knowing."""
    return Finding(name, Level.NOTE, fact, advice)


def problem(name: str, fact: str, advice: str = "") -> Finding:
    """Return a finding that keeps a server from being had."""
    return Finding(name, Level.PROBLEM, fact, advice)


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """How a job ended.

    Attributes:
        value: What it returned; None when it did not.
        error: What it raised; None when it raised nothing.
        late: It had not ended in time, and may still be running.
    """

    value: T | None = None
    error: BaseException | None = None
    late: bool = False


def gather(jobs: Sequence[Callable[[], T]], seconds: float) -> list[Outcome[T]]:
    """Run all jobs at once and return how each ended, in their order, after ``seconds`` at most.

    A job that hangs goes on in its thread, which does not keep the process from ending.
    """
    ended: list[Outcome[T]] = [Outcome(late=True)] * len(jobs)

    def run(place: int, job: Callable[[], T]) -> None:
        try:
            ended[place] = Outcome(value=job())
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the job's outcome
            ended[place] = Outcome(error=error)

    # Not an executor: it would wait for its threads at the end of the process.
    threads = [
        threading.Thread(target=run, args=pair, name=f"emberd-doctor-{pair[0]}", daemon=True)
        for pair in enumerate(jobs)
    ]
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return list(ended)

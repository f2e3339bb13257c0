"""Findings, the results of checks; and running calls that may hang with a time limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from emberd.system import background

T = TypeVar("T")


class Level(StrEnum):
    """Severity of a finding.

    A problem prevents serving the model. A note is worth knowing, or concerns other servers only.
    """

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


class Part(StrEnum):
    """Subject of a check. Reports list the findings in this order."""

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
    """One fact that a check found.

    Attributes:
        name: Subject, in one or two words.
        level: Severity.
        fact: What was found: one sentence without a full stop.
        advice: What to do, preferably a command to type; empty if nothing needs to be done.
        gives: Sentence for the verdict if this finding means that the model can be served; else
            empty.
        part: Subject of the check.
    """

    name: str
    level: Level
    fact: str
    advice: str = ""
    gives: str = ""
    part: Part = Part.SOFTWARE


def split(text: str) -> tuple[str, str]:
    """Split the text of an ``EmberdError`` into the fact, its first sentence, and the advice."""
    fact, _, advice = text.strip().partition(". ")
    return fact.rstrip("."), advice


def ok(name: str, fact: str, *, gives: str = "") -> Finding:
    """Return a finding without a problem."""
    return Finding(name, Level.OK, fact, gives=gives)


def note(name: str, fact: str, advice: str = "") -> Finding:
    """Return a finding that is worth knowing."""
    return Finding(name, Level.NOTE, fact, advice)


def problem(name: str, fact: str, advice: str = "") -> Finding:
    """Return a finding that prevents serving the model."""
    return Finding(name, Level.PROBLEM, fact, advice)


class LateError(Exception):
    """A call was still running at the deadline."""


def gather(calls: Sequence[Callable[[], T]], seconds: float) -> list[T | BaseException]:
    """Run ``calls`` concurrently and return the result or the exception of each, in order.

    A call that still runs after ``seconds`` counts as a ``LateError``. It goes on in its daemon
    thread, which does not keep the process from ending.
    """
    futures = [background.run(call, f"doctor-{index}") for index, call in enumerate(calls)]
    wait(futures, timeout=seconds)
    return [
        (future.exception() or future.result()) if future.done() else LateError()
        for future in futures
    ]

"""What the doctor's checks are given in tests, and how their findings are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emberd.catalog import DEMO_MODEL
from emberd.doctor.findings import Finding, Level
from emberd.doctor.wanted import Wanted
from emberd.env import Places
from emberd.settings import ServerSpec
from http_server import HttpServer, reply

Told = list[tuple[str, str, str]]


def wanted(home: Path, model: str = DEMO_MODEL, **more: Any) -> Wanted:
    """Return what is asked for; fields of the spec, the places and ``Wanted`` by their names."""
    names = ("engine", "device", "revision", "quantization", "task")
    of_spec = {name: more.pop(name) for name in names if name in more}
    of_places = {name: more.pop(name) for name in ("discover", "auto_install") if name in more}
    places = Places(str(home), str(home / "engines"), **of_places)
    return Wanted(ServerSpec(model, **of_spec), places, **more)


def told(findings: Iterable[Finding]) -> Told:
    """Return level, fact and advice of each finding."""
    return [(finding.level, finding.fact, finding.advice) for finding in findings]


def named(findings: Iterable[Finding], name: str) -> Finding:
    """Return the one finding of that name."""
    [found] = [finding for finding in findings if finding.name == name]
    return found


def worse(findings: Iterable[Finding]) -> list[Finding]:
    """Return what is not as it should be."""
    return [finding for finding in findings if finding.level is not Level.OK]


@contextmanager
def answering(answer: Callable[[str], tuple[int, bytes]]) -> Iterator[str]:
    """Yield the URL of a server that answers each GET, by its path, with a status and a body."""

    with HttpServer(lambda request, _: reply(*answer(request.path))) as server:
        yield server.url

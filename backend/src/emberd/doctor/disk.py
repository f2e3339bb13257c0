"""The disks that emberd and its engines write to, and what has to fit on each."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from emberd import engines, hub_cache, model_files
from emberd.catalog import DEMO_MODEL
from emberd.doctor import hub
from emberd.doctor.bounded import Outcome, gather
from emberd.doctor.filesystems import Ground, ground
from emberd.doctor.findings import Finding, note, ok, problem
from emberd.doctor.wanted import Wanted
from emberd.errors import EmberdError
from emberd.installs import RECIPES, in_words

_SECONDS: Final = 2.0
_STATE_BYTES: Final = 100_000_000  # logs, mostly
_SCRATCH_BYTES: Final = 500_000_000
_INSTALL_SPARE: Final = 1.15
# Sockets of a server lie in a folder of its own in TMPDIR, and the kernel allows 107 characters.
_LONGEST_TEMPORARY_CHARACTERS: Final = 70


@dataclass(frozen=True, slots=True)
class Place:
    """A folder that something has to fit into.

    Attributes:
        name: What it is, for people.
        path: Where it is.
        needs_bytes: What has to fit.
        why: What that is for.
        variable: What moves it to another disk.
    """

    name: str
    path: Path
    needs_bytes: int
    why: str
    variable: str


def look(wanted: Wanted) -> Iterator[Finding]:
    """Yield whether each disk has room for what is still to be written."""
    places = list(_places(wanted, os.environ))
    # Each by itself: one network disk that is away must not hide the others.
    for place, seen in zip(
        places, gather([partial(ground, p.path) for p in places], _SECONDS), strict=True
    ):
        yield _finding(place, seen)
    if len(tempfile.gettempdir()) > _LONGEST_TEMPORARY_CHARACTERS:
        yield note(
            "temporary files",
            f"the path {tempfile.gettempdir()} is long, and a socket's may have 107 characters",
            "export TMPDIR=/tmp",
        )


def _places(wanted: Wanted, environ: Mapping[str, str]) -> Iterator[Place]:
    yield Place("home", wanted.home, _STATE_BYTES, "state and logs", "EMBERD_HOME")
    yield _engines(wanted)
    yield _weights(wanted)
    temporary = Path(environ.get("TMPDIR") or tempfile.gettempdir())
    yield Place("temporary files", temporary, _SCRATCH_BYTES, "temporary files", "TMPDIR")


def _engines(wanted: Wanted) -> Place:
    path = Path(os.path.expanduser(wanted.places.engines))
    name = _to_install(wanted)
    if name is None:
        return Place("engines", path, 0, "", "EMBERD_ENGINES")
    recipe = RECIPES[name]
    needed = round(recipe.bytes * _INSTALL_SPARE) + recipe.download_bytes
    return Place("engines", path, needed, f"the engine {name}", "EMBERD_ENGINES")


def _to_install(wanted: Wanted) -> str | None:
    try:
        return None if wanted.is_given else engines.explain(wanted.spec).installable
    except EmberdError:
        return None  # which is told where engines are


def _weights(wanted: Wanted) -> Place:
    model = wanted.spec.model
    return Place("hub's cache", hub_cache.root(), _to_download(wanted), model, "HF_HOME")


def _to_download(wanted: Wanted) -> int:
    spec = wanted.spec
    if spec.model == DEMO_MODEL or model_files.is_path(spec.model) or wanted.is_given:
        return 0
    if hub.cached(spec.model, spec.revision).is_whole:
        return 0
    return hub.weights_bytes(spec.model) or 0


def _finding(place: Place, seen: Outcome[Ground]) -> Finding:
    if seen.value is None:
        why = "does not answer" if seen.late else str(seen.error)
        advice = f"Is it on a network disk that is away? Set {place.variable} to a local folder."
        return problem(place.name, f"{place.path}: {why}", advice)
    found = seen.value
    where = f"{place.path} ({found.kind})" if found.kind else f"{place.path}"
    fact = f"{in_words(found.free_bytes)} free for {where}"
    elsewhere = f"Set {place.variable} to a folder on another disk"
    if found.free_bytes < place.needs_bytes:
        needed = f"{in_words(place.needs_bytes)} needed for {place.why}"
        return problem(place.name, f"{fact}, and about {needed}", f"{elsewhere}, or make room.")
    if found.inodes == 0:
        return problem(place.name, f"{where} can hold no more files", f"{elsewhere}.")
    if not found.writable and place.needs_bytes:
        return problem(place.name, f"{found.path} may not be written by this user", f"{elsewhere}.")
    return ok(place.name, fact)

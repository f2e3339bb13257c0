"""Engines: which one would serve the model, why others would not, and which are installed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Final

from emberd import engines
from emberd.doctor.findings import Finding, note, ok, problem, split
from emberd.doctor.wanted import Wanted
from emberd.engines import Engine, Plan
from emberd.engines.base import dry_run
from emberd.errors import EmberdError, StartError
from emberd.installs import (
    RECIPES,
    Installed,
    Recipe,
    in_words,
    installed,
    locate,
    lock_holder,
    sites,
)

ELSEWHERE: Final = (
    "Use a server on another machine: export EMBERD_BASE_URL=http://HOST:30000/v1 "
    "(or, to try emberd here: emberd up emberd/demo)"
)

_QUANTITY: Final = re.compile(r"[A-Za-z][A-Za-z ]* \d+(\.\d+)? (GiB|MiB)")


def check_engine(wanted: Wanted) -> Iterator[Finding]:
    """Yield which engine would serve the model, and what is missing for it."""
    try:
        found = engines.explain(wanted.spec)
    except EmberdError as error:
        fact, advice = split(str(error))
        yield problem("engine", fact, advice or "Correct or unset it.")
        return
    if found.engine is not None:
        yield from _planned(wanted, found.engine)
    else:
        yield _none(wanted, found)
    for name, reason in found.refusals.items():
        yield note(name, reason.rstrip("."))


def up_command(wanted: Wanted) -> str:
    """Return the command that starts the requested server."""
    options = (f"--{name} {shlex.quote(text)}" for name, text in wanted.given.items())
    return " ".join(("emberd up", *options))


def _none(wanted: Wanted, found: engines.Choice) -> Finding:
    if found.installable is None:
        return problem("engine", "no engine can serve the model on this machine", ELSEWHERE)
    name = found.installable
    if wanted.places.auto_install:
        return ok(
            "engine",
            f"{name} is not installed; EMBERD_AUTO_INSTALL installs it at the first start",
            gives=f"{wanted.spec.model} can be served on this machine after the engine {name} is "
            f"installed automatically: {up_command(wanted)}",
        )
    return problem(
        "engine",
        f"{name} can serve the model on this machine, but is not installed",
        f"emberd engine install {name}",
    )


def _planned(wanted: Wanted, engine: Engine) -> Iterator[Finding]:
    try:
        plan = dry_run(engine, wanted.spec, wanted.options, wanted.places.home)
    except StartError as error:
        yield problem(engine.name, error.cause.rstrip("."), error.advice)
        return
    model = wanted.spec.model
    yield ok(
        engine.name,
        f"{_program(plan)} would serve {model} on {plan.device}",
        gives=f"{model} can be served on this machine with the engine {engine.name}: "
        f"{up_command(wanted)}",
    )
    for reason in plan.reasons:
        if _QUANTITY.fullmatch(reason.what):
            yield ok("plan", f"{reason.what}: {reason.why}")
    for text in plan.notes:
        yield note("plan", text.rstrip("."))


def _program(plan: Plan) -> str:
    # The user's arguments follow in the command, and may contain a key.
    return plan.command[0]


def check_installs(wanted: Wanted) -> Iterator[Finding]:
    """Yield the state of each engine's environment."""
    for recipe in RECIPES.values():
        try:
            yield from _recipe(recipe, wanted)
        except EmberdError as error:
            yield note(recipe.name, *split(str(error)))


def _recipe(recipe: Recipe, wanted: Wanted) -> Iterator[Finding]:
    whole = {own.folder: own for own in installed(wanted.places) if own.name == recipe.name}
    for own in whole.values():
        yield _own(recipe, own)
    for place in sites(wanted.places, recipe.name):
        if str(place.folder) not in whole:
            yield _half_made(recipe, str(place.folder), wanted)
    found = locate(recipe.name, wanted.places)
    if found is not None and found.python not in {own.python for own in whole.values()}:
        yield ok(recipe.name, f"{found.version} by {found.python} ({found.why})")
    if found is None and not whole:
        yield ok(recipe.name, "not installed")


def _own(recipe: Recipe, own: Installed) -> Finding:
    again = f"emberd engine remove {own.name} && emberd engine install {own.name}"
    if not own.is_usable:
        return note(own.name, f"the Python interpreter of {own.folder} no longer exists", again)
    fact = f"{own.version} in {own.folder} ({in_words(own.bytes)})"
    if own.version != recipe.version:
        return note(
            own.name, f"{fact}; this version of emberd was tested with {recipe.version}", again
        )
    return ok(own.name, fact)


def _half_made(recipe: Recipe, folder: str, wanted: Wanted) -> Finding:
    by = lock_holder(wanted.places, recipe.name)
    if by is not None:
        return note(recipe.name, f"{by} is installing it into {folder}", "Wait for it.")
    return note(
        recipe.name,
        f"{folder} is left over from an interrupted installation",
        f"emberd engine install {recipe.name}",
    )

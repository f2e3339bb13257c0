"""Engines: which one would serve the model, why others would not, and which are installed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from emberd import engines, env
from emberd.catalog import EMBED
from emberd.doctor.findings import Finding, note, ok, problem, split
from emberd.doctor.wanted import Wanted
from emberd.engines import Engine
from emberd.engines.base import dry_run
from emberd.env import Places
from emberd.errors import EmberdError, StartError
from emberd.installs import Recipe, installed, locate, lock_holder, recipes, sites
from emberd.manager import gpu_servers
from emberd.system.disk_space import in_words

_QUANTITY: Final = re.compile(r"[A-Za-z][A-Za-z ]* \d+(\.\d+)? (GiB|MiB)")


def check_engine(wanted: Wanted) -> Iterator[Finding]:
    """Yield which engine would serve the model, and what is missing for it."""
    try:
        found = engines.explain(wanted.spec)
    except EmberdError as error:
        fact, advice = split(str(error))
        yield problem("engine", fact, advice or "Correct or unset it.")
        return
    name = found.installable
    if found.engine is not None:
        yield from _planned(wanted, found.engine)
    elif name is None:
        yield problem("engine", "no engine can serve the model on this machine", _elsewhere(wanted))
    elif wanted.places.auto_install:
        yield ok(
            "engine",
            f"{name} is not installed; EMBERD_AUTO_INSTALL installs it at the first start",
            gives=f"{wanted.spec.model} can be served on this machine after the engine {name} is "
            f"installed automatically: {up_command(wanted)}",
        )
    else:
        fact = f"{name} can serve the model on this machine, but is not installed"
        advice = f"{up_command(wanted)} (asks, and installs it); or: emberd engine install {name}"
        yield problem("engine", fact, advice)
    for refused, reason in found.refusals.items():
        yield note(refused, reason.rstrip("."))


def _elsewhere(wanted: Wanted) -> str:
    task = wanted.spec.task
    variable = env.setting_variable("base_url", task)
    advice = f"Use a server on another machine: export {variable}=http://HOST:30000/v1"
    demo = " (or, to try emberd here: emberd up emberd/demo)"
    return advice + demo if task == EMBED else advice


def up_command(wanted: Wanted) -> str:
    """Return the command that starts the requested server."""
    options = (f"--{name} {shlex.quote(text)}" for name, text in wanted.given.items())
    return " ".join(("emberd up", *options))


def _planned(wanted: Wanted, engine: Engine) -> Iterator[Finding]:
    try:
        home = wanted.places.home
        servers = gpu_servers.of_home(home, restarted=wanted.spec)
        plan = dry_run(engine, wanted.spec, wanted.options, home, servers=servers)
    except StartError as error:
        yield problem(engine.name, error.cause.rstrip("."), error.advice)
        return
    model = wanted.spec.model
    yield ok(
        engine.name,
        # Only the program: the user's arguments are in the command too, and may contain a key.
        f"{plan.command[0]} would serve {model} on {plan.device}",
        gives=f"{model} can be served on this machine with the engine {engine.name}: "
        f"{up_command(wanted)}",
    )
    for reason in plan.reasons:
        if _QUANTITY.fullmatch(reason.what):
            yield ok("plan", f"{reason.what}: {reason.why}")
    for text in plan.notes:
        yield note("plan", text.rstrip("."))


@dataclass(frozen=True, slots=True)
class EngineEnvironment:
    """The state of one environment of an engine, as ``emberd engine list`` shows it.

    Attributes:
        engine: Name of the engine.
        version: Version of its distribution; empty if unknown.
        state: ``"installed"``, ``"broken"``, ``"installing"``, ``"unfinished"``, ``"found"`` (not
            installed by emberd), ``"unusable"``, or ``"not installed"``.
        detail: Why, or what to do; may be empty.
        python: Its interpreter.
        folder: Its folder.
        bytes: Its size on disk.
        installed_at: When it was finished, in UTC (ISO 8601).
    """

    engine: str
    version: str
    state: str
    detail: str = ""
    python: str | None = None
    folder: str | None = None
    bytes: int | None = None
    installed_at: str | None = None


def environments(recipe: Recipe, places: Places) -> Iterator[EngineEnvironment]:
    """Yield the environments of an engine; if there is none, one that is not installed.

    Why they cannot be read or used is in one that is ``"unusable"``.
    """
    try:
        yield from _environments(recipe, places)
    except EmberdError as error:
        yield EngineEnvironment(recipe.name, "", "unusable", str(error))


def _environments(recipe: Recipe, places: Places) -> Iterator[EngineEnvironment]:
    def other(version: str) -> str:
        needed = f"this version of emberd installs {recipe.version}"
        return "" if version == recipe.version else needed

    made = partial(EngineEnvironment, recipe.name)
    own = installed(places, recipe.name)
    for each in own:
        state, detail = "installed", other(each.version)
        if not each.is_usable:
            state, detail = "broken", "its Python interpreter cannot be run: install it again"
        yield made(
            each.version, state, detail, each.python, each.folder, each.bytes, each.installed_at
        )
    partly = [site for site in sites(places, recipe.name) if site.read() is None]
    for site in partly:
        by = lock_holder(places, recipe.name)
        state, detail = ("installing", f"by {by}") if by else ("unfinished", "install it again")
        yield made(site.version, state, detail, folder=str(site.folder))
    found = locate(recipe.name, places)
    if found is not None and found.python not in {each.python for each in own}:
        detail = "; ".join(filter(None, (found.why, other(found.version))))
        yield made(found.version, "found", detail, found.python)
    elif not own and not partly:
        yield made(recipe.version, "not installed")


def check_installs(wanted: Wanted) -> Iterator[Finding]:
    """Yield the state of each engine's environments."""
    for recipe in recipes.RECIPES.values():
        for found in environments(recipe, wanted.places):
            yield _environment(found)


def _environment(found: EngineEnvironment) -> Finding:
    name, folder, install = found.engine, found.folder, f"emberd engine install {found.engine}"
    again = f"emberd engine remove {name} && {install}"
    match found.state:
        case "installed":
            fact = f"{found.version} in {folder} ({in_words(found.bytes or 0)})"
            return note(name, f"{fact}; {found.detail}", again) if found.detail else ok(name, fact)
        case "broken":
            return note(name, f"the Python interpreter of {folder} cannot be run", again)
        case "installing":
            return note(name, f"is being installed {found.detail} into {folder}", "Wait for it.")
        case "unfinished":
            return note(name, f"{folder} is left over from an interrupted installation", install)
        case "found":
            return ok(name, f"{found.version} by {found.python} ({found.detail})")
        case "unusable":
            return note(name, *split(found.detail))
        case _:
            return ok(name, found.state)

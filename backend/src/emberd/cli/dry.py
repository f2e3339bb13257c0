"""``emberd up --dry-run``: what would be started, and why each word of it is there."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from typing import Final

from emberd import engines
from emberd.cli import output
from emberd.engines import Plan
from emberd.engines.base import DRY_RUN_FOLDER, DRY_RUN_KEY, DRY_RUN_PORT, dry_run
from emberd.env import Places
from emberd.settings import ServerSpec, StartOptions

_INDENT: Final = "    "
_USED_INSTEAD: Final = "A running server that serves the model would be used instead."

Redact = Callable[[str], str]


def show(spec: ServerSpec, options: StartOptions, *, as_json: bool) -> None:
    """Print how a server for ``spec`` would be started; nothing is written or started.

    Raises:
        NoEngineError: No engine can serve the model on this machine.
        StartError: The machine has not got what the plan needs.
    """
    # Imported late: the other verbs must not pay for it.
    from emberd.system.redaction import redactor, secrets, words

    engine = engines.choose(spec)
    plan = dry_run(engine, spec, options, Places.resolve().home)
    redact = redactor(more=secrets(options.arguments))
    command = words(plan.command, redact)
    if as_json:
        output.dump(_content(engine.name, plan, command, redact))
        return
    for line in _lines(engine.name, plan, command, redact, any_port=options.port is None):
        output.say(line)


def _content(engine: str, plan: Plan, command: list[str], redact: Redact) -> dict[str, object]:
    return {
        "engine": engine,
        "device": plan.device,
        "command": command,
        "environment": _added(plan, redact),
        "removed": _removed(plan),
        "files": sorted(plan.files),
        "reasons": [
            {"what": redact(reason.what), "why": redact(reason.why)} for reason in plan.reasons
        ],
        "notes": [redact(note) for note in plan.notes],
    }


def _lines(
    engine: str, plan: Plan, command: list[str], redact: Redact, *, any_port: bool
) -> list[str]:
    return [
        _USED_INSTEAD,
        f"The engine {engine} would run on {plan.device}:",
        "",
        *_prefix(plan),
        *(f"{name}={shlex.quote(text)} \\" for name, text in sorted(_added(plan, redact).items())),
        shlex.join(command),
        "",
        *_reasons(plan, redact),
        *([f"The port stands for any that is free: {DRY_RUN_PORT}."] if any_port else []),
        *(_written(name) for name in sorted(plan.files)),
        *(f"Note: {redact(note)}" for note in plan.notes),
    ]


def _prefix(plan: Plan) -> list[str]:
    removed = _removed(plan)
    options = " ".join(f"-u {shlex.quote(name)}" for name in removed)
    return [f"env {options} \\"] if removed else []


def _written(name: str) -> str:
    place = os.path.join(DRY_RUN_FOLDER, name)
    return f"The file {place} is written at the start. Only you can read it; it may hold the key."


def _reasons(plan: Plan, redact: Redact) -> list[str]:
    if not plan.reasons:
        return []
    lines = ["Why:"]
    for reason in plan.reasons:
        lines += [f"  {redact(reason.what)}", f"{_INDENT}{_INDENT}{redact(reason.why)}"]
    return [*lines, ""]


def _added(plan: Plan, redact: Redact) -> dict[str, str]:
    # Only what the plan changes, and never a secret: the caller's environment is the caller's.
    return {
        name: redact(value)
        for name, value in plan.environment.items()
        if os.environ.get(name) != value and DRY_RUN_KEY not in value
    }


def _removed(plan: Plan) -> list[str]:
    # A command that is tried by hand must not see them either.
    return sorted(name for name in os.environ if name not in plan.environment)

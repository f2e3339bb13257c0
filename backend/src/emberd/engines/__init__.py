"""The kinds of server that emberd can start, and the choice of one."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final, cast

from emberd import env
from emberd.catalog import MODELS
from emberd.engines.base import Engine, Launch, Plan
from emberd.errors import NoEngineError, SettingError, StateFolderError
from emberd.settings import ServerSpec
from emberd.system.log_rules import Diagnosis

__all__ = ["NAMES", "Choice", "Diagnosis", "Engine", "Launch", "Plan", "choose", "explain", "load"]

NAMES: Final = ("sglang", "transformers", "demo")
"""Names of the engines that come with emberd, in order of preference."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which engine can serve a model on this machine.

    Attributes:
        engine: The preferred one; None if none can.
        installable: The environment whose installation would let an engine serve; None if an
            engine can already, or an installation would not help.
        refusals: Name of a more preferred engine -> why it cannot.
    """

    engine: Engine | None
    installable: str | None
    refusals: dict[str, str]


def load(name: str) -> Engine:
    """Return the engine called ``name``.

    Args:
        name: One of ``NAMES``, or the dotted name of a module that has an ``ENGINE``.

    Raises:
        SettingError: There is no such engine.
    """
    if name not in NAMES and "." not in name:
        raise SettingError(
            f"engine={name!r} is not known. Use one of {', '.join(NAMES)}, or the dotted name of a "
            f"module that has an ENGINE."
        )
    try:
        module = importlib.import_module(f"emberd.engines.{name}" if name in NAMES else name)
        return cast("Engine", module.ENGINE)
    except (ImportError, AttributeError) as error:
        raise SettingError(
            f"engine={name!r} cannot be loaded: {error}. "
            f"A module given as an engine must be importable and have an ENGINE."
        ) from error


def explain(spec: ServerSpec) -> Choice:
    """Return which engine can serve ``spec`` on this machine, and why the others cannot.

    Raises:
        SettingError: The engine is unknown, or a variable names an unusable interpreter.
    """
    refusals: dict[str, str] = {}
    installable = None
    for name in [spec.engine] if spec.engine else NAMES:
        engine = load(name)
        try:
            reason = engine.why_unavailable(spec)
        except StateFolderError as error:  # only its own environment is refused
            refusals[engine.name] = env.named_for(spec.task, str(error))
            continue
        if reason is None:
            return Choice(engine, None, refusals)
        refusals[engine.name] = env.named_for(spec.task, reason)
        installable = installable or engine.installable_environment(spec)
    return Choice(None, installable, refusals)


def choose(spec: ServerSpec) -> Engine:
    """Return the preferred engine that can serve ``spec`` on this machine.

    Raises:
        NoEngineError: None can; the message says why for each, and what to do.
        SettingError: As for ``explain``.
    """
    choice = explain(spec)
    if choice.engine is not None:
        return choice.engine
    known = [model.name for model in MODELS]
    close = [] if spec.model in known else get_close_matches(spec.model, known, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    reasons = "\n".join(f"  {name}: {reason}" for name, reason in choice.refusals.items())
    raise NoEngineError(f"No engine can serve {spec.model} on this machine{hint}:\n{reasons}")

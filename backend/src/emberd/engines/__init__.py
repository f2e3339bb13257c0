"""The kinds of server that emberd can start: which can serve a model here, and which cannot."""

from __future__ import annotations

import importlib
from difflib import get_close_matches
from typing import Final, cast

from emberd.catalog import MODELS
from emberd.engines.base import Diagnosis, Engine, Launch, Plan
from emberd.errors import NoEngineError, SettingError
from emberd.settings import ServerSpec

__all__ = ["NAMES", "Diagnosis", "Engine", "Launch", "Plan", "choose", "load", "to_install"]

NAMES: Final = ("sglang", "transformers", "demo")
"""Names of the engines that come with emberd, in the order in which they are asked."""


def load(name: str) -> Engine:
    """Return the engine called ``name``.

    Args:
        name: One of ``NAMES``, or the dotted name of a module that has an ``ENGINE``.

    Raises:
        SettingError: There is no such engine.
    """
    if name not in NAMES and "." not in name:
        raise SettingError(
            f"engine={name!r} is not known. Known are {', '.join(NAMES)}, "
            f"and the dotted name of a module that has an ENGINE."
        )
    path = f"emberd.engines.{name}" if name in NAMES else name
    try:
        module = importlib.import_module(path)
        return cast("Engine", module.ENGINE)
    except (ImportError, AttributeError) as error:
        raise SettingError(
            f"engine={name!r} cannot be loaded: {error}. "
            f"A module given as an engine must be importable and have an ENGINE."
        ) from error


def choose(spec: ServerSpec) -> Engine:
    """Return the first engine that can serve ``spec`` on this machine.

    Raises:
        NoEngineError: None can; the text says why for each, and what to do.
    """
    reasons = []
    for name in [spec.engine] if spec.engine else NAMES:
        engine = load(name)
        reason = engine.refusal(spec)
        if reason is None:
            return engine
        reasons.append(f"  {engine.name}: {reason}")
    raise NoEngineError(
        f"No engine can serve {spec.model} on this machine{_meant(spec.model)}:\n"
        + "\n".join(reasons)
    )


def to_install(spec: ServerSpec) -> str | None:
    """Return the environment whose installation would let an engine serve ``spec``.

    Returns:
        None where one can serve already, or none could.
    """
    chosen = [load(name) for name in ([spec.engine] if spec.engine else NAMES)]
    if any(engine.refusal(spec) is None for engine in chosen):
        return None
    return next(filter(None, (engine.missing(spec) for engine in chosen)), None)


def _meant(name: str) -> str:
    known = [model.name for model in MODELS]
    close = get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close and name not in known else ""

"""Environment variables: invalid values, unknown names, and those that emberd does not read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Final

from emberd import env
from emberd.doctor.findings import Finding, note, ok, problem, split
from emberd.doctor.wanted import Wanted
from emberd.env import Variable
from emberd.system.redaction import origin

_OTHERS: Final = "OPENAI_"


def check_variables(wanted: Wanted) -> Iterator[Finding]:
    """Yield which variables are set, invalid or unknown."""
    for text in wanted.problems:
        fact, advice = split(text)
        yield problem("setting", fact, advice or "Correct or unset it.")
    for name in sorted(os.environ):
        if name.startswith(env.PREFIX) and name not in (*env.VARIABLES, *env.INTERNAL):
            yield _unknown(name)
    yield _given(os.environ)
    if others := sorted(name for name in os.environ if name.startswith(_OTHERS)):
        yield ok("openai", f"{', '.join(others)} set: emberd reads none of them")


def _unknown(name: str) -> Finding:
    # The value is not shown: it may be a key under a wrong name.
    close = get_close_matches(name, sorted(env.VARIABLES), n=1)
    advice = f"Did you mean {close[0]}? Rename it, or unset it." if close else f"unset {name}"
    return note("unknown", f"{name} is set, but emberd reads no such variable", advice)


def _given(environ: Mapping[str, str]) -> Finding:
    given = sorted(name for name in env.VARIABLES if environ.get(name))
    shown = [_shown(env.VARIABLES[name], environ[name]) for name in given]
    return ok("variables", f"set: {', '.join(shown)}" if shown else "no EMBERD_ variable is set")


def _shown(variable: Variable, text: str) -> str:
    if variable.display == "origin":
        return f"{variable.name}={','.join(map(origin, text.replace(',', ' ').split()))}"
    return f"{variable.name}={text}" if variable.display == "value" else variable.name

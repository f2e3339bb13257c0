"""The environment: variables that cannot be read, that nobody reads, and that are left alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Final

from emberd.doctor.findings import Finding, note, ok, problem, split
from emberd.doctor.wanted import Wanted
from emberd.installs import RECIPES
from emberd.settings import Settings
from emberd.system.redaction import origin

_PREFIX: Final = "EMBERD_"
_OTHERS: Final = "OPENAI_"
_PLACES: Final = ("HOME", "ENGINES", "DISCOVER", "AUTO_INSTALL", "DEBUG")
_CACHE: Final = ("CACHE_USER", "CACHE_PASSWORD")
_START: Final = ("PORT", "TP_SIZE", "DP_SIZE", "ENGINE_ARGS")
_WITHIN: Final = ("MARK", "SERVER_KEY")  # of emberd's own processes to each other
_SHOWN: Final = ("HOME", "ENGINES", "MODEL", "ENGINE", "DEVICE")
_URLS: Final = ("DISCOVER", "BASE_URL")


def look(wanted: Wanted) -> Iterator[Finding]:
    """Yield what the environment says to emberd, and what it says in vain."""
    for text in wanted.problems:
        fact, advice = split(text)
        yield problem("setting", fact, advice or "Correct it, or unset it.")
    unknown = sorted(name for name in os.environ if name.startswith(_PREFIX))
    for name in unknown:
        if name not in known():
            yield _unknown(name)
    yield _said(os.environ)
    if others := sorted(name for name in os.environ if name.startswith(_OTHERS)):
        yield ok("openai", f"{', '.join(others)} set: emberd reads none of them")


def known() -> frozenset[str]:
    """Return the names of all variables that emberd reads."""
    names = (*(f.name.upper() for f in fields(Settings)), *_PLACES, *_CACHE, *_START, *_WITHIN)
    return frozenset({*(_PREFIX + name for name in names), *(r.variable for r in RECIPES.values())})


def _unknown(name: str) -> Finding:
    # Its value is not shown: it may be a key under a wrong name.
    close = get_close_matches(name, sorted(known()), n=1)
    advice = f"Did you mean {close[0]}? Rename it, or unset it." if close else f"unset {name}"
    return note("unknown", f"{name} is set, and nothing reads it", advice)


def _said(environ: Mapping[str, str]) -> Finding:
    given = [
        name
        for name in sorted(known())
        if environ.get(name) and name.removeprefix(_PREFIX) not in _WITHIN
    ]
    shown = [_shown(name, environ[name]) for name in given]
    return ok("variables", f"set: {', '.join(shown)}" if shown else "none of emberd's is set")


def _shown(name: str, text: str) -> str:
    bare = name.removeprefix(_PREFIX)
    if bare in _URLS:
        return f"{name}={','.join(map(origin, text.replace(',', ' ').split()))}"
    return f"{name}={text}" if bare in _SHOWN else name

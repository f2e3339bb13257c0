"""The environments of engines: those that are whole, half-made, broken, or somebody else's."""

from __future__ import annotations

from collections.abc import Iterator

from emberd.doctor.findings import Finding, note, ok, split
from emberd.doctor.wanted import Wanted
from emberd.errors import EmberdError
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


def look(wanted: Wanted) -> Iterator[Finding]:
    """Yield what is installed of each engine that has an environment of its own."""
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
        return note(own.name, f"the Python of {own.folder} is gone", again)
    fact = f"{own.version} in {own.folder} ({in_words(own.bytes)})"
    if own.version != recipe.version:
        return note(own.name, f"{fact}; this emberd was tried with {recipe.version}", again)
    return ok(own.name, fact)


def _half_made(recipe: Recipe, folder: str, wanted: Wanted) -> Finding:
    by = lock_holder(wanted.places, recipe.name)
    if by is not None:
        return note(recipe.name, f"{by} is installing it into {folder}", "Wait for it.")
    return note(
        recipe.name,
        f"{folder} is what an interrupted installation left",
        f"emberd engine install {recipe.name}",
    )

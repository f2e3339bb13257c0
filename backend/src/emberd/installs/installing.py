"""Installing an engine: once, however many ask, and whole or not at all."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from emberd.env import Places
from emberd.errors import InstallError
from emberd.installs import building, environments, hosts, locks, reasons, removing, sizes, users
from emberd.installs.environments import Installed, Site
from emberd.installs.recipes import Recipe, recipe_of

_TAIL_BYTES: Final = 4096
_DOING_CHARACTERS: Final = 60

Tell = Callable[[str], None]


def install(
    name: str, places: Places, on_progress: Callable[[str], None] | None = None
) -> Installed:
    """Return the environment of an engine, made when there is none.

    It takes minutes and gigabytes. While another process installs the same engine this one waits
    and then finds it done. Killed at any moment, it leaves nothing that looks whole, and the next
    call begins anew.

    Args:
        name: The engine.
        places: Where environments lie.
        on_progress: Takes a line for people about once a second.

    Raises:
        SettingError: No such engine.
        InstallError: It could not be installed; the cause, what to do, and the log are named.
        StateFolderError: The folder is somebody else's, or anybody may write to it.
    """
    recipe = recipe_of(name)
    tell = on_progress or _silently
    place = environments.site(recipe, places)
    if (found := _whole(place, recipe)) is not None:
        return found
    hosts.check(recipe)
    python = hosts.python_for(recipe)
    with locks.held(environments.engines_folder(places), name, tell):
        return _whole(place, recipe) or _make(recipe, place, python, tell)


def _whole(place: Site, recipe: Recipe) -> Installed | None:
    if place.folder.parent.is_dir():
        environments.check_ours(place.folder.parent)
    found = place.read()
    if found is None or not found.is_usable or found.requirements != recipe.requirements:
        return None
    return found


def _make(recipe: Recipe, place: Site, python: str, tell: Tell) -> Installed:
    users.end_leftovers(place.folder)
    removing.clear(place, tell)
    keep = sizes.check_room(recipe, place.folder.parent)
    tell(f"installing {recipe}: {sizes.in_words(recipe.bytes)} into {place.folder}")
    progress = _Progress(recipe, place, tell)
    try:
        packages = building.Builder(recipe, place, python, keep, tell, progress.tick).build()
        return place.finish(recipe, packages, sizes.used_bytes(place.folder))
    except BaseException as error:
        # Gigabytes of no use; where the process is killed, the next installation removes them.
        shutil.rmtree(place.folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise _unwritable(recipe, place, error) from error
        raise
    finally:
        shutil.rmtree(place.scratch, ignore_errors=True)


def _unwritable(recipe: Recipe, place: Site, error: OSError) -> InstallError:
    return InstallError(
        f"{recipe} could not be installed: {error.filename or place.folder}: "
        f"{error.strerror or error}",
        advice="Make room, or set EMBERD_ENGINES to a folder that you may write to.",
        log_path=os.fspath(place.log),
    )


class _Progress:
    """Says once a second how far an installation is."""

    def __init__(self, recipe: Recipe, place: Site, tell: Tell) -> None:
        self._recipe = recipe
        self._log = place.log
        self._tell = tell
        self._begun_s = time.monotonic()
        self._installed = sizes.Meter(place.folder)
        self._downloaded = sizes.Meter(place.scratch)

    def tick(self) -> None:
        have, whole = self._installed.read(), self._recipe.bytes
        seconds = time.monotonic() - self._begun_s
        parts = [f"{sizes.in_words(have)} of {sizes.in_words(whole)}", f"{seconds:.0f} s"]
        if downloaded := self._downloaded.read():
            parts.insert(1, f"{sizes.in_words(downloaded)} downloaded")
        doing = reasons.last_lines(_tail(self._log), 1)[:_DOING_CHARACTERS]
        self._tell(f"installing {self._recipe}: {', '.join(parts)}: {doing}".rstrip(": "))


def _tail(log: Path) -> str:
    with log.open("rb") as file:
        begin = max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES)
        file.seek(begin)
        said = file.read().decode("utf-8", "replace")
    # Without a first line that is cut, in which a password may stand without what tells it.
    return said.partition("\n")[2] if begin else said


def _silently(_text: str) -> None:
    """Say nothing."""

"""Removing environments: never one that a process runs from, and never half of one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

from emberd.env import Places
from emberd.errors import InstallError
from emberd.installs import environments, locks, users
from emberd.installs.environments import Installed, Site
from emberd.installs.recipes import recipe_of


def remove(name: str, places: Places) -> Installed | None:
    """Remove an engine's environments, whole or half-made, of whatever version.

    Returns:
        The one that was whole, the pinned version before others; None when none was.

    Raises:
        SettingError: No such engine.
        InstallError: A process runs from it, or it is being installed; nothing is removed then.
        StateFolderError: The folder is somebody else's, or anybody may write to it.
    """
    recipe_of(name)
    if not environments.sites(places, name):
        return None
    with locks.held_at_once(environments.engines_folder(places), name):
        whole = [own for own in environments.installed(places) if own.name == name]
        found = environments.sites(places, name)
        for place in found:
            users.end_leftovers(place.folder)
            _check_unused(place)
        for place in found:
            clear(place)
            place.log.unlink(missing_ok=True)
    return whole[0] if whole else None


def clear(place: Site, tell: Callable[[str], None] | None = None) -> None:
    """Remove all that lies where an environment is to be made; its lock is held.

    Raises:
        InstallError: A process runs from it, or it cannot be removed.
    """
    if tell is not None and place.rests:
        tell(f"removing what is left of {place.folder}")
    if place.folder.exists():
        _check_unused(place)
    try:
        for rest in (place.scratch, place.removed):
            if rest.exists():
                shutil.rmtree(rest)
        if place.folder.exists():
            # In one step: killed on the way, half an environment does not look like a whole one.
            place.folder.rename(place.removed)
            shutil.rmtree(place.removed)
    except OSError as error:
        raise InstallError(
            f"{error.filename or place.folder} cannot be removed ({error.strerror or error})",
            advice=f"Remove {place.folder} by hand.",
        ) from error


def _check_unused(place: Site) -> None:
    used_by = list(users.running_from(place.folder))
    if used_by:
        raise InstallError(
            f"{os.fspath(place.folder)} is in use by process {', '.join(used_by)}",
            advice="Stop it (`emberd stop` stops all servers that emberd keeps), then try again.",
        )

"""The environments that emberd made, as they lie on the disk.

::

    <engines>/<name>.lock               who installs or removes; never deleted
    <engines>/<name>-<version>/         the environment
    <engines>/<name>-<version>/emberd.json   written last: only with it the environment is whole
    <engines>/<name>-<version>.log      what the installer said, 0600
    <engines>/<name>-<version>.tmp/     what it downloads and unpacks, while it runs
    <engines>/<name>-<version>.removed/ on its way out
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from emberd.env import Places
from emberd.errors import StateFolderError
from emberd.installs import recipes
from emberd.installs.recipes import Recipe

_MARKER: Final = "emberd.json"
_SCRATCH: Final = ".tmp"
_REMOVED: Final = ".removed"
_SCHEMA: Final = 1


@dataclass(frozen=True, slots=True)
class Installed:
    """An environment of an engine that emberd made.

    Attributes:
        name: The engine.
        version: The version of its distribution.
        python: Its interpreter.
        folder: Where it lies.
        bytes: Its size on disk.
        installed_at: When it was finished, in UTC (ISO 8601).
        packages: The folder that holds its distributions.
        requirements: What the installer was given.
    """

    name: str
    version: str
    python: str
    folder: str
    bytes: int
    installed_at: str
    packages: str = ""
    requirements: tuple[str, ...] = ()

    @property
    def is_usable(self) -> bool:
        """Whether its interpreter is still there: the Python that it stands on may be gone."""
        return os.access(self.python, os.X_OK)


@dataclass(frozen=True, slots=True)
class Site:
    """Where the environment of one version of an engine lies, whole or not.

    Attributes:
        name: The engine.
        version: The version.
        folder: The environment.
    """

    name: str
    version: str
    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def log(self) -> Path:
        """What the installer said."""
        return self._beside(".log")

    @property
    def scratch(self) -> Path:
        """What the installer downloads and unpacks."""
        return self._beside(_SCRATCH)

    @property
    def removed(self) -> Path:
        """Where the environment is put to be removed."""
        return self._beside(_REMOVED)

    @property
    def rests(self) -> list[Path]:
        """What there is of it: all but the log."""
        return [path for path in (self.folder, self.scratch, self.removed) if path.exists()]

    def read(self) -> Installed | None:
        """Return the environment when it is whole."""
        try:
            content = json.loads((self.folder / _MARKER).read_text("utf-8"))
            return self._installed(content) if content["schema"] == _SCHEMA else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def finish(self, recipe: Recipe, packages: str, size_bytes: int) -> Installed:
        """Mark the environment as whole, in one step, and return it."""
        content = {
            "schema": _SCHEMA,
            "version": recipe.version,
            # Relative: a volume may be mounted elsewhere tomorrow.
            "packages": os.path.relpath(packages, self.folder),
            "bytes": size_bytes,
            "installed_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "requirements": recipe.requirements,
        }
        new = self.folder / f"{_MARKER}.new"
        new.write_text(json.dumps(content, indent=2), "utf-8")
        new.replace(self.folder / _MARKER)
        return self._installed(content)

    def _beside(self, ending: str) -> Path:
        return self.folder.with_name(self.folder.name + ending)

    def _installed(self, content: dict[str, Any]) -> Installed:
        return Installed(
            name=self.name,
            version=content["version"],
            python=str(self.python),
            folder=str(self.folder),
            bytes=content["bytes"],
            installed_at=content["installed_at"],
            packages=os.path.normpath(self.folder / content["packages"]),
            requirements=tuple(content["requirements"]),
        )


def engines_folder(places: Places) -> Path:
    """Return the folder of all environments."""
    return Path(os.path.abspath(os.path.expanduser(places.engines)))


def site(recipe: Recipe, places: Places) -> Site:
    """Return where the environment of a recipe lies."""
    folder = engines_folder(places) / f"{recipe.name}-{recipe.version}"
    return Site(recipe.name, recipe.version, folder)


def sites(places: Places, name: str | None = None) -> list[Site]:
    """Return where environments lie, whole or not: all, or those of one engine.

    Raises:
        StateFolderError: The folder of all is somebody else's, or anybody may write to it.
    """
    engines = engines_folder(places)
    if not engines.is_dir():
        return []
    check_ours(engines)
    found = {own.folder: own for own in _found(engines)}
    return [own for _, own in sorted(found.items()) if name in (None, own.name)]


def installed(places: Places) -> list[Installed]:
    """Return the environments that are whole, by name, the version of the recipe first.

    Raises:
        StateFolderError: Their folder is somebody else's, or anybody may write to it.
    """
    whole = [own for each in sites(places) if (own := each.read()) is not None]
    return sorted(whole, key=_rank)


def check_ours(folder: Path) -> None:
    """Check that nobody else can have put programs into ``folder``, which we are going to run.

    Raises:
        StateFolderError: It belongs to another user than this one or root, or is open to all.
    """
    facts = folder.stat()
    if facts.st_uid not in (os.geteuid(), 0):
        raise StateFolderError(
            f"{folder} belongs to user {facts.st_uid}, not to {os.geteuid()} or root: what it "
            f"holds is not run. Set EMBERD_ENGINES to a folder of your own."
        )
    if facts.st_mode & stat.S_IWOTH:
        raise StateFolderError(
            f"{folder} can be written by everybody (mode {stat.S_IMODE(facts.st_mode):o}): what it "
            f"holds is not run. Run: chmod o-w '{folder}'"
        )


def _found(engines: Path) -> Iterator[Site]:
    with os.scandir(engines) as entries:
        names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    for folder in names:
        base = folder.removesuffix(_SCRATCH).removesuffix(_REMOVED)
        name, dash, version = base.partition("-")
        if dash and name in recipes.RECIPES:
            yield Site(name, version, engines / base)


def _rank(own: Installed) -> tuple[str, bool, str]:
    return own.name, own.version != recipes.RECIPES[own.name].version, own.version

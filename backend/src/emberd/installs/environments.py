"""The environments that emberd installs: their folders, who uses them, and the install lock.

::

    <engines>/<name>.lock               held while the engine is installed or removed; never deleted
    <engines>/<name>-<version>/         the environment
    <engines>/<name>-<version>/emberd.json   written last: without it the environment is incomplete
    <engines>/<name>-<version>.log      output of the installer, 0600
    <engines>/<name>-<version>.tmp/     its downloads and temporary files, while it runs
    <engines>/<name>-<version>.removed/ an environment that is being removed
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from emberd.env import Places
from emberd.errors import InstallError, StateFolderError
from emberd.installs import recipes
from emberd.installs.recipes import Recipe
from emberd.system import atomic_file, file_lock, os_errors, ownership, process_env, processes

_MARKER: Final = "emberd.json"
_SCRATCH: Final = ".tmp"
_REMOVED: Final = ".removed"
_SCHEMA: Final = 1
_MOST_BYTES: Final = 1024 * 1024
_ELSEWHERE: Final = "Set EMBERD_ENGINES to your own folder."
_OWNER: Final[dict[str, Any]] = {
    "by_root": True,
    "so": "so its programs are not run",
    "instead": _ELSEWHERE,
}


@dataclass(frozen=True, slots=True)
class Installed:
    """A complete environment of an engine that emberd installed.

    Attributes:
        name: The engine.
        version: The version of its distribution.
        python: Its interpreter.
        folder: Its folder.
        bytes: Its size on disk.
        installed_at: When it was finished, in UTC (ISO 8601).
        packages: The folder that contains its distributions.
        requirements: What the installer was given.
    """

    name: str
    version: str
    python: str
    folder: str
    bytes: int
    installed_at: str
    packages: str
    requirements: tuple[str, ...]

    @property
    def is_usable(self) -> bool:
        """Whether this user can run its interpreter; the Python behind it may be removed."""
        return os.access(self.python, os.X_OK)


@dataclass(frozen=True, slots=True)
class Site:
    """The place of the environment of one version of an engine, complete or not.

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
        """Output of the installer."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def scratch(self) -> Path:
        """Downloads and temporary files of the installer."""
        return self.folder.with_name(f"{self.folder.name}{_SCRATCH}")

    @property
    def removed(self) -> Path:
        """Where the environment is moved before it is removed."""
        return self.folder.with_name(f"{self.folder.name}{_REMOVED}")

    @property
    def leftovers(self) -> list[Path]:
        """All that exists of it, except the log."""
        return [path for path in (self.folder, self.scratch, self.removed) if path.exists()]

    def read(self, *, to_run: bool = True) -> Installed | None:
        """Return the environment if it is complete.

        Args:
            to_run: Its programs may be run, so who can have changed it is checked.

        Raises:
            StateFolderError: Another user can have changed it.
        """
        marker = self.folder / _MARKER
        try:
            with os.fdopen(ownership.open_file(marker), "rb") as file:
                if to_run:
                    ownership.check(marker, os.fstat(file.fileno()), within=self.folder, **_OWNER)
                content = json.loads(file.read(_MOST_BYTES))
            own = self._installed(content) if content["schema"] == _SCHEMA else None
            if to_run and own is not None and own.is_usable:
                _check_programs(own)
        except StateFolderError:
            raise
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return own

    def finish(self, recipe: Recipe, packages: str, size_bytes: int) -> Installed:
        """Mark the environment as complete, in one step, and return it."""
        content = {
            "schema": _SCHEMA,
            "version": recipe.version,
            # Relative, because a volume may be mounted at another path later.
            "packages": os.path.relpath(packages, self.folder),
            "bytes": size_bytes,
            "installed_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "requirements": recipe.requirements,
        }
        text = json.dumps(content, indent=2)
        atomic_file.write(self.folder / _MARKER, text.encode(), mode=0o644)
        return self._installed(content)

    def _installed(self, content: dict[str, Any]) -> Installed:
        texts = (content["version"], content["installed_at"], *content["requirements"])
        if not (all(isinstance(each, str) for each in texts) and type(content["bytes"]) is int):
            raise TypeError(content)
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


def site(recipe: Recipe, places: Places) -> Site:
    """Return the place of a recipe's environment."""
    folder = Path(places.engines, f"{recipe.name}-{recipe.version}")
    return Site(recipe.name, recipe.version, folder)


@os_errors.raised_as(StateFolderError, _ELSEWHERE)
def sites(places: Places, name: str | None = None) -> list[Site]:
    """Return the places of environments, complete or not: all, or those of one engine.

    Raises:
        StateFolderError: Their folder belongs to another user, others can write to it, or it
            cannot be read.
    """
    engines, found = Path(places.engines), {}
    with suppress(FileNotFoundError, NotADirectoryError):
        # Where a link leads: an administrator may have moved the folder to another disk.
        ownership.check_folder(os.path.realpath(engines), **_OWNER)
        with os.scandir(engines) as entries:
            for entry in (each for each in entries if each.is_dir(follow_symlinks=False)):
                base = entry.name.removesuffix(_SCRATCH).removesuffix(_REMOVED)
                engine, dash, version = base.partition("-")
                if dash and engine in recipes.RECIPES and name in (None, engine):
                    found[base] = Site(engine, version, engines / base)
    return [found[base] for base in sorted(found)]


def installed(places: Places, name: str | None = None, *, to_run: bool = True) -> list[Installed]:
    """Return the complete environments by name, the version of the recipe first.

    Args:
        places: Where environments are.
        name: The engine; None for all.
        to_run: See ``Site.read``.

    Raises:
        StateFolderError: As for ``sites``; or another user can have changed an environment.
    """
    found = [own for each in sites(places, name) if (own := each.read(to_run=to_run)) is not None]
    return sorted(
        found,
        key=lambda own: (own.name, own.version != recipes.RECIPES[own.name].version, own.version),
    )


def _check_programs(own: Installed) -> None:
    """Check who can write an environment's programs, its packages, and the folders above those.

    Not the files of the packages, which are too many: they are as the installer made them, which
    gives others no write access.
    """
    folder, packages = Path(own.folder), Path(own.packages)
    above = [each for each in packages.parents if each.is_relative_to(folder)]
    checked = [folder, *above, packages, folder / "bin", folder / "pyvenv.cfg"]
    program = os.path.realpath(own.python)
    # The one that runs this program is trusted already, no matter who owns it.
    if program != _running():
        checked.append(Path(program))
    for path in checked:
        within = folder if path.is_relative_to(folder) else None
        ownership.check(path, path.stat(), within=within, **_OWNER)


def _running() -> str:
    python = process_env.interpreter()
    return os.path.realpath(python) if python else ""


# ------------------------------------------------------------ processes that use one

_COMMAND_WORDS: Final = 2  # the interpreter, and the script that it runs
_SHOWN_CHARACTERS: Final = 80


def check_unused(place: Site) -> None:
    """Check that no process runs from an environment.

    Raises:
        InstallError: Some do; they are named.
    """
    import psutil

    users, inside = [], os.fspath(place.folder) + os.sep
    for pid in processes.pids():
        try:
            process = psutil.Process(pid)
            words = process.cmdline()
            if (
                any(word.startswith(inside) for word in words[:_COMMAND_WORDS])
                or process.exe().startswith(inside)
                or _has_loaded(pid, inside)
            ):
                shown = " ".join(words) or process.name()
                users.append(f"{pid} ({shown[:_SHOWN_CHARACTERS]})")
        except (psutil.Error, OSError):
            continue  # it has ended, or belongs to another user
    if users:
        raise InstallError(
            f"{place.folder} is in use by process {', '.join(users)}",
            advice="Stop it (`emberd stop` stops all servers that emberd started), then try again.",
        )


def _has_loaded(pid: int, inside: str) -> bool:
    if sys.platform != "linux":
        return False
    # Parts of a server rename themselves, and their program is the Python that the environment was
    # made from; but the libraries that they have loaded are the environment's.
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as maps:
        return inside in maps.read()


# ------------------------------------------------------------ the lock

_REPORT_EVERY_S: Final = 10.0


@contextmanager
def locked(places: Places, name: str, report: Callable[[str], None] | None) -> Iterator[None]:
    """Hold the lock of an engine, which is installed or removed by one process at a time.

    Args:
        places: Where environments are.
        name: The engine.
        report: Gets a line at intervals while another process holds the lock; None to fail then.

    Raises:
        InstallError: Another process holds the lock and ``report`` is None; or the folder cannot
            be created or written, or has no locks.
    """
    path = Path(places.engines, f"{name}.lock")
    note = f"process {os.getpid()}"
    timeout_s = 0.0
    with ExitStack() as stack:
        while True:
            try:
                path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                stack.enter_context(file_lock.held(path, timeout_s, note=note))
                break
            except file_lock.LockHeldError as error:
                holder = error.holder or "another process"
                if report is None:
                    raise InstallError(
                        f"{name} is being installed or removed by {holder}",
                        advice="Wait until it has finished, or end that process, then try again.",
                    ) from error
                report(f"waiting for {holder}, which installs or removes {name}")
                timeout_s = _REPORT_EVERY_S
            except OSError as error:
                raise _unusable_lock(path, error) from error
        yield


def lock_holder(places: Places, name: str) -> str | None:
    """Return the process that installs or removes an engine now, for display; None if none does.

    Raises:
        InstallError: The lock cannot be opened.
    """
    path = Path(places.engines, f"{name}.lock")
    try:
        is_held = file_lock.is_held(path)
    except OSError as error:
        raise _unusable_lock(path, error) from error
    return (file_lock.holder(path) or "another process") if is_held else None


def _unusable_lock(path: Path, error: OSError) -> InstallError:
    return InstallError(
        f"{error.filename or path} cannot be created or locked ({error.strerror or error})",
        advice="Set EMBERD_ENGINES to a folder on a local disk that you can write to.",
    )

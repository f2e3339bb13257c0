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
from emberd.system import atomic_file, file_lock, ownership, process_env, processes

_MARKER: Final = "emberd.json"
_SCRATCH: Final = ".tmp"
_REMOVED: Final = ".removed"
_SCHEMA: Final = 1
_MOST_BYTES: Final = 1024 * 1024
_NOT_RUN: Final = "so its programs are not run"
_ELSEWHERE: Final = "Set EMBERD_ENGINES to a folder of your own."


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
        """Whether its interpreter exists; the Python that it was created from may be removed."""
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

    def read(self) -> Installed | None:
        """Return the environment if it is complete.

        Raises:
            StateFolderError: Another user can have changed it.
        """
        try:
            content = json.loads(_read_own(self.folder / _MARKER))
            own = self._installed(content) if content["schema"] == _SCHEMA else None
        except StateFolderError:
            raise
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        if own is not None:
            _check_programs(own)
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
    """Return the place of a recipe's environment."""
    folder = engines_folder(places) / f"{recipe.name}-{recipe.version}"
    return Site(recipe.name, recipe.version, folder)


def sites(places: Places, name: str | None = None) -> list[Site]:
    """Return the places of environments, complete or not: all, or those of one engine.

    Raises:
        StateFolderError: Their folder belongs to another user, or others can write to it.
    """
    engines = engines_folder(places)
    if not engines.is_dir():
        return []
    check_owner(engines)
    found = {}
    with os.scandir(engines) as entries:
        for entry in (each for each in entries if each.is_dir(follow_symlinks=False)):
            base = entry.name.removesuffix(_SCRATCH).removesuffix(_REMOVED)
            engine, dash, version = base.partition("-")
            if dash and engine in recipes.RECIPES and name in (None, engine):
                found[base] = Site(engine, version, engines / base)
    return [found[base] for base in sorted(found)]


def installed(places: Places) -> list[Installed]:
    """Return the complete environments by name, the version of the recipe first.

    Raises:
        StateFolderError: Their folder belongs to another user, or others can write to it.
    """
    complete = [own for each in sites(places) if (own := each.read()) is not None]
    return sorted(
        complete,
        key=lambda own: (own.name, own.version != recipes.RECIPES[own.name].version, own.version),
    )


def check_owner(engines: Path) -> None:
    """Check that no other user can have put programs into the folder of all environments.

    Raises:
        StateFolderError: It belongs to a user other than this one or root, or others can write
            to it.
    """
    # Where a link leads: an administrator may have moved the folder to another disk.
    ownership.check_folder(os.path.realpath(engines), by_root=True, so=_NOT_RUN, instead=_ELSEWHERE)


def _read_own(file: Path) -> bytes:
    descriptor = ownership.open_file(file)
    with os.fdopen(descriptor, "rb") as opened:
        _check(file, os.fstat(descriptor), file.parent)
        return opened.read(_MOST_BYTES)


def _check_programs(own: Installed) -> None:
    """Check the folders of an environment, its interpreter, and what tells that its packages.

    All of its files are too many to be checked; no other user can add or replace any in folders
    that only this user or root can write.
    """
    folder = Path(own.folder)
    for inner in (folder, folder / "bin", Path(own.packages)):
        with suppress(FileNotFoundError):
            _check(inner, inner.stat(), folder)
    program = os.path.realpath(own.python)
    # The one that runs this program is trusted already, whoever owns it.
    files = [folder / "pyvenv.cfg", *([] if program == _running() else [Path(program)])]
    for file in files:
        with suppress(FileNotFoundError):
            _check(file, file.stat(), folder if file.is_relative_to(folder) else None)


def _check(path: Path, facts: os.stat_result, folder: Path | None) -> None:
    ownership.check(path, facts, by_root=True, so=_NOT_RUN, instead=_ELSEWHERE, within=folder)


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
    path = engines_folder(places) / f"{name}.lock"
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
    path = engines_folder(places) / f"{name}.lock"
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

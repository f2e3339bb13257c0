"""The environments that emberd made, as they lie on the disk.

::

    <engines>/<name>.lock               who installs or removes; never deleted
    <engines>/<name>-<version>/         the environment
    <engines>/<name>-<version>/emberd.json   written last: only with it the environment is whole
    <engines>/<name>-<version>.log      what the installer said, 0600
    <engines>/<name>-<version>.tmp/     what it downloads and unpacks, while it runs
    <engines>/<name>-<version>.removed/ on its way out

* Processes that an environment is in use by, or that an interrupted installation left.

* One process at a time installs or removes an engine.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from emberd.env import Places
from emberd.errors import InstallError, StateFolderError
from emberd.installs import recipes
from emberd.installs.recipes import Recipe
from emberd.system import process_env

if TYPE_CHECKING:
    import psutil
    from filelock import BaseFileLock


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
        except (OSError, ValueError, KeyError, TypeError):
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


_KILL_S: Final = 10.0
_COMMAND_WORDS: Final = 2  # the interpreter, and the script that it runs
_SHOWN_CHARACTERS: Final = 80


def running_from(folder: Path) -> Iterator[str]:
    """Yield the processes that run from an environment, each as a text for people."""
    import psutil

    for process in psutil.process_iter():
        try:
            if _runs_from(process, os.fspath(folder)):
                words = " ".join(process.cmdline()) or process.name()
                yield f"{process.pid} ({words[:_SHOWN_CHARACTERS]})"
        except (psutil.Error, OSError):
            continue  # it has ended, or is somebody else's


def end_leftovers(folder: Path) -> None:
    """Kill what an interrupted installation of ``folder`` left, and wait until it is gone.

    The shim does so at once when the installing process dies; this is for the moment between.

    Raises:
        InstallError: Something does not go.
    """
    import psutil

    left = [process for process in psutil.process_iter() if _is_marked(process, folder)]
    for process in left:
        try:
            process.kill()
        except psutil.Error:
            continue
    _, alive = psutil.wait_procs(left, timeout=_KILL_S)
    stay = [process.pid for process in alive if _is_marked(process, folder)]
    if stay:
        raise InstallError(
            f"Processes {', '.join(map(str, stay))} of an interrupted installation do not end",
            advice="End them, then try again.",
        )


def _is_marked(process: psutil.Process, folder: Path) -> bool:
    import psutil

    try:
        if process.uids().real != os.getuid() or process.status() == psutil.STATUS_ZOMBIE:
            return False
        return process.environ().get(process_env.MARK) == os.fspath(folder)
    except (psutil.Error, OSError):
        return False


def _runs_from(process: psutil.Process, folder: str) -> bool:
    inside = folder + os.sep
    if any(word.startswith(inside) for word in process.cmdline()[:_COMMAND_WORDS]):
        return True
    if process.exe().startswith(inside):
        return True
    return sys.platform == "linux" and _has_mapped(process.pid, inside)


def _has_mapped(pid: int, inside: str) -> bool:
    # Parts of a server rename themselves, and their program is the Python that the environment
    # was made of; the libraries that they have loaded are the environment's.
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as maps:
        return inside in maps.read()


_LINE_EVERY_S: Final = 10.0
_POLL_S: Final = 0.1
_NO_WAIT_S: Final = 0.0


@contextmanager
def held(engines: Path, name: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of an engine, waiting for whoever has it and saying so.

    The kernel frees it when its holder dies, however that died.

    Raises:
        InstallError: The folder cannot be made or written, or knows no locks.
    """
    path = _prepared(engines, name)
    lock = _lock(path)
    patience_s = _NO_WAIT_S
    while not _acquired(lock, path, patience_s):
        tell(f"waiting for {_holder(path)}, which installs or removes {name}")
        patience_s = _LINE_EVERY_S
    with _owned(lock, path):
        yield


@contextmanager
def held_at_once(engines: Path, name: str) -> Iterator[None]:
    """Hold the lock of an engine.

    Raises:
        InstallError: Another process has it, which is named; or as for ``held``.
    """
    path = _prepared(engines, name)
    lock = _lock(path)
    if not _acquired(lock, path, _NO_WAIT_S):
        raise InstallError(
            f"{name} is being installed or removed by {_holder(path)}",
            advice="Wait for it, or end that process, then try again.",
        )
    with _owned(lock, path):
        yield


def holder(places: Places, name: str) -> str | None:
    """Return who installs or removes an engine just now, as a text for people."""
    path = engines_folder(places) / f"{name}.lock"
    if not path.exists():
        return None
    lock = _lock(path)
    if not _acquired(lock, path, _NO_WAIT_S):
        return _holder(path)
    lock.release()
    return None


def _prepared(engines: Path, name: str) -> Path:
    try:
        engines.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(engines, error) from error
    return engines / f"{name}.lock"


def _lock(path: Path) -> BaseFileLock:
    # Imported late: whoever looks for an installed engine takes no lock.
    from filelock import FileLock

    # A soft lock is a file that a killed process leaves behind; deleting the file of a hard one
    # splits those who wait for it over two inodes.
    return FileLock(path, fallback_to_soft=False, preserve_lock_file=True, mode=0o600)


def _acquired(lock: BaseFileLock, path: Path, timeout_s: float) -> bool:
    from filelock import Timeout

    try:
        lock.acquire(timeout=timeout_s, poll_interval=_POLL_S)
    except Timeout:
        return False
    except OSError as error:
        raise _unwritable(path, error) from error
    return True


@contextmanager
def _owned(lock: BaseFileLock, path: Path) -> Iterator[None]:
    # For people only: what holds is the lock, whatever the text says.
    with suppress(OSError):
        path.write_text(f"process {os.getpid()}")
    try:
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    try:
        return path.read_text() or "another process"
    except OSError:
        return "another process"


def _unwritable(path: Path, error: OSError) -> InstallError:
    return InstallError(
        f"{path} cannot be made or locked ({error.strerror or error})",
        advice="Set EMBERD_ENGINES to a folder on a local disk that you may write to.",
    )

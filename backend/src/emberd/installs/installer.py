"""Installing an engine: once, however many ask, and whole or not at all.

* Filling an environment: with uv where it is there, else with venv and pip.

* Running an installer: it, and all that it starts, ends with this process however that ends.

* Removing environments: never one that a process runs from, and never half of one.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from emberd.env import Places
from emberd.errors import InstallError
from emberd.installs import environments, installer_errors, interpreters, recipes
from emberd.installs.environments import Installed, Site
from emberd.installs.recipes import Recipe, recipe_of
from emberd.system import pdeathsig, process_env

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
    recipes.check(recipe)
    python = recipes.python_for(recipe)
    with environments.held(environments.engines_folder(places), name, tell):
        return _whole(place, recipe) or _make(recipe, place, python, tell)


def _whole(place: Site, recipe: Recipe) -> Installed | None:
    if place.folder.parent.is_dir():
        environments.check_ours(place.folder.parent)
    found = place.read()
    if found is None or not found.is_usable or found.requirements != recipe.requirements:
        return None
    return found


def _make(recipe: Recipe, place: Site, python: str, tell: Tell) -> Installed:
    environments.end_leftovers(place.folder)
    clear(place, tell)
    keep = recipes.check_room(recipe, place.folder.parent)
    tell(f"installing {recipe}: {recipes.in_words(recipe.bytes)} into {place.folder}")
    progress = _Progress(recipe, place, tell)
    try:
        packages = Builder(recipe, place, python, keep, tell, progress.tick).build()
        return place.finish(recipe, packages, recipes.used_bytes(place.folder))
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
        self._installed = recipes.Meter(place.folder)
        self._downloaded = recipes.Meter(place.scratch)

    def tick(self) -> None:
        have, whole = self._installed.read(), self._recipe.bytes
        seconds = time.monotonic() - self._begun_s
        parts = [f"{recipes.in_words(have)} of {recipes.in_words(whole)}", f"{seconds:.0f} s"]
        if downloaded := self._downloaded.read():
            parts.insert(1, f"{recipes.in_words(downloaded)} downloaded")
        doing = installer_errors.last_lines(_tail(self._log), 1)[:_DOING_CHARACTERS]
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


_PRIVATE: Final = 0o600
_UV: Final = "uv"
_PIP: Final = (
    *("-I", "-m", "pip", "install", "--disable-pip-version-check", "--no-input"),
    *("--progress-bar", "off", "--no-warn-script-location"),
)


@dataclass
class Builder:
    """Fills the environment of a recipe.

    Attributes:
        recipe: What it is to hold.
        site: Where it is to lie; nothing is there yet.
        python: The interpreter that it is made of.
        keep_downloads: Whether the installer may keep them in its own cache.
        tell: Takes a text for people.
        tick: Called about once a second while an installer runs.
        uv: The program uv; None where there is none.
    """

    recipe: Recipe
    site: Site
    python: str
    keep_downloads: bool
    tell: Callable[[str], None]
    tick: Callable[[], None]
    uv: str | None = field(default_factory=lambda: shutil.which(_UV))

    def build(self) -> str:
        """Fill the environment and return the folder that holds its distributions.

        Raises:
            InstallError: It could not be filled, or something else arrived than was asked for.
        """
        _new_log(self.site.log)
        self.site.scratch.mkdir(mode=0o700)
        if not (self.uv and self._with_uv(self.uv)):
            self._with_pip()
        return self._checked()

    def _with_uv(self, uv: str) -> bool:
        kept = () if self.keep_downloads else ("--no-cache",)
        folder, python = os.fspath(self.site.folder), os.fspath(self.site.python)
        failure = self._run(uv, "venv", *kept, "--no-project", "--python", self.python, folder)
        # Its kernels depend on pre-releases: without the option uv takes an old SGLang. Compiled
        # now, the first start of a server need not do it.
        failure = failure or self._run(
            *(uv, "pip", "install", *kept, "--python", python, "--prerelease=allow"),
            *("--compile-bytecode", *self.recipe.requirements),
        )
        if failure is None:
            return True
        if failure.final:
            raise self._error(failure)
        self.tell(f"uv could not install {self.recipe} ({failure.cause}); trying pip")
        return False

    def _with_pip(self) -> None:
        kept = () if self.keep_downloads else ("--no-cache-dir",)
        folder, python = os.fspath(self.site.folder), os.fspath(self.site.python)
        failure = self._run(self.python, "-I", "-m", "venv", "--clear", folder)
        failure = failure or self._run(python, *_PIP, *kept, *self.recipe.requirements)
        if failure is not None:
            raise self._error(failure)

    def _run(self, *command: str) -> installer_errors.Failure | None:
        begin = self.site.log.stat().st_size
        _append(self.site.log, f"\n$ {_shown(command)}\n")
        code = run(
            command,
            python=self.python,
            environment=process_env.of_installer(
                os.fspath(self.site.folder), os.fspath(self.site.scratch)
            ),
            folder=self.site.scratch,
            log=self.site.log,
            on_tick=self.tick,
        )
        if code == 0:
            return None
        # A shim that was killed leaves the installer running, which nothing may write beside.
        environments.end_leftovers(self.site.folder)
        return installer_errors.why(code, self._said(begin))

    def _checked(self) -> str:
        recipe, python = self.recipe, os.fspath(self.site.python)
        try:
            found = interpreters.ask(python, recipe.distribution, recipe.modules)
        except OSError as error:
            raise self._wrong(f"{python} does not run ({error})") from error
        if found is None or found.version != recipe.version:
            arrived = "none" if found is None else found.version
            raise self._wrong(
                f"{recipe.distribution} {recipe.version} was asked for, and {arrived} arrived"
            )
        if found.missing:
            raise self._wrong(f"{', '.join(found.missing)} cannot be imported afterwards")
        return found.packages

    def _error(self, failure: installer_errors.Failure) -> InstallError:
        last = installer_errors.last_lines(self._said(0))
        return InstallError(
            f"{self.recipe} could not be installed: {failure.cause}",
            advice=f"{failure.advice} The last lines: {last}.",
            log_path=os.fspath(self.site.log),
        )

    def _wrong(self, cause: str) -> InstallError:
        return InstallError(
            f"{self.recipe} could not be installed: {cause}",
            advice="Look at the package index and its constraints (`pip config list`).",
            log_path=os.fspath(self.site.log),
        )

    def _said(self, begin: int) -> str:
        with self.site.log.open("rb") as file:
            file.seek(begin)
            return file.read().decode("utf-8", "replace")


def _new_log(log: Path) -> None:
    # It may quote addresses of the user's network.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    os.close(os.open(log, flags, _PRIVATE))
    log.chmod(_PRIVATE)


def _append(log: Path, text: str) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(text)


def _shown(command: Sequence[str]) -> str:
    return " ".join(command)


_TICK_S: Final = 1.0


def run(
    command: Sequence[str],
    *,
    python: str,
    environment: Mapping[str, str],
    folder: Path,
    log: Path,
    on_tick: Callable[[], None],
) -> int:
    """Run a program to its end and return its exit code.

    Args:
        command: Program and arguments.
        python: Runs the shim, which ends the whole group when this process is gone. The kernel's
            own death signal reaches one process alone, and ``venv`` has pip as a child.
        environment: The whole environment.
        folder: Where it runs: a project's settings in the caller's folder are none of its.
        log: Takes its output.
        on_tick: Called about once a second.
    """
    read, write = os.pipe()
    try:
        with log.open("ab") as output:
            popen = subprocess.Popen(  # noqa: S603 - the command is ours
                [python, "-I", "-S", pdeathsig.__file__, str(os.getpid()), str(read), *command],
                cwd=folder,
                env=environment,
                pass_fds=[read],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
                stdout=output,
            )
        return _wait(popen, on_tick)
    finally:
        os.close(read)
        os.close(write)


def _wait(popen: subprocess.Popen[bytes], on_tick: Callable[[], None]) -> int:
    try:
        while True:
            try:
                return popen.wait(_TICK_S)
            except subprocess.TimeoutExpired:
                on_tick()
    finally:
        if popen.returncode is None:
            # Ctrl-C came here alone: the group is in a session of its own.
            with suppress(ProcessLookupError):
                os.killpg(popen.pid, signal.SIGKILL)
            popen.wait()


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
    with environments.held_at_once(environments.engines_folder(places), name):
        whole = [own for own in environments.installed(places) if own.name == name]
        found = environments.sites(places, name)
        for place in found:
            environments.end_leftovers(place.folder)
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
    used_by = list(environments.running_from(place.folder))
    if used_by:
        raise InstallError(
            f"{os.fspath(place.folder)} is in use by process {', '.join(used_by)}",
            advice="Stop it (`emberd stop` stops all servers that emberd keeps), then try again.",
        )

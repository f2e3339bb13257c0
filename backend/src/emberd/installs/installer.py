"""Installs and removes environments: one process at a time, and completely or not at all."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

from emberd.env import Places
from emberd.errors import InstallError
from emberd.installs import environments, interpreters, recipes
from emberd.installs.environments import Installed, Site
from emberd.installs.recipes import Recipe, recipe_of
from emberd.system import disk_space, log_rules, pdeathsig, process_env, processes
from emberd.system.disk_space import FolderMeter, in_words
from emberd.system.log_rules import Diagnosis, LogRule

_LOG_MODE: Final = 0o600  # it may quote addresses in the user's network
_UMASK: Final = 0o022
_TICK_S: Final = 1.0
_KILL_S: Final = 10.0
_NOISE: Final = re.compile(r"WARNING: (Location|Retrying)|\[notice\]|^\$ |^\s*$")
_TAIL_LINES: Final = 3
_TAIL_BYTES: Final = 4096
_TAIL_CHARACTERS: Final = 60

Report = Callable[[str], None]


def install(name: str, places: Places, on_progress: Report | None = None) -> Installed:
    """Return the environment of an engine, and install it if it is missing.

    Takes minutes and gigabytes. While another process installs the same engine, this one waits and
    then finds it installed. If it is killed, nothing is left that looks complete, and the next call
    starts over.

    Args:
        name: The engine.
        places: Where environments are.
        on_progress: Gets a line for display about once a second.

    Raises:
        SettingError: The engine is unknown.
        InstallError: The installation failed; the cause, what to do, and the log are named.
        StateFolderError: The folder belongs to another user, or others can write to it.
    """
    recipe = recipe_of(name)
    report = on_progress or (lambda _text: None)
    place = environments.site(recipe, places)
    if (found := _complete(place, recipe, places)) is not None:
        return found
    recipes.check_platform(recipe)
    python = interpreters.find_python(recipe)
    with environments.locked(places, name, report):
        return _complete(place, recipe, places) or _make(recipe, place, python, report)


def remove(name: str, places: Places) -> Installed | None:
    """Remove an engine's environments of all versions, complete or not.

    Returns:
        The one that was complete, of the pinned version if there were several; None if none was.

    Raises:
        SettingError: The engine is unknown.
        InstallError: A process runs from it, or it is being installed; nothing is removed then.
        StateFolderError: The folder belongs to another user, or others can write to it.
    """
    recipe_of(name)
    if not environments.sites(places, name):
        return None
    with environments.locked(places, name, report=None):
        complete = environments.installed(places, name, to_run=False)
        found = environments.sites(places, name)
        for place in found:
            _kill_installers(place)
            environments.check_unused(place)
        for place in found:
            _clear(place)
            place.log.unlink(missing_ok=True)
    return complete[0] if complete else None


def _complete(place: Site, recipe: Recipe, places: Places) -> Installed | None:
    found = place.read() if place in environments.sites(places, recipe.name) else None
    is_current = found and found.is_usable and found.requirements == recipe.requirements
    return found if is_current else None


def _make(recipe: Recipe, place: Site, python: str, report: Report) -> Installed:
    _kill_installers(place)
    if place.leftovers:
        report(f"removing what is left of {place.folder}")
    _clear(place)
    keep = recipes.check_disk_space(recipe, place.folder.parent)
    report(f"installing {recipe}: {in_words(recipe.bytes)} into {place.folder}")
    try:
        packages = _Builder(recipe, place, python, report, keep_downloads=keep).build()
        return place.finish(recipe, packages, disk_space.used_bytes(place.folder))
    except BaseException as error:
        # Useless gigabytes; if the process is killed, the next installation removes them.
        shutil.rmtree(place.folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise _failed(
                recipe,
                place,
                f"{error.filename or place.folder}: {error.strerror or error}",
                "Free some space, or set EMBERD_ENGINES to a folder that you can write to.",
            ) from error
        raise
    finally:
        shutil.rmtree(place.scratch, ignore_errors=True)


def _failed(recipe: Recipe, place: Site, cause: str, advice: str) -> InstallError:
    return InstallError(
        f"{recipe} could not be installed: {cause}",
        advice=advice,
        log_path=os.fspath(place.log),
    )


def _clear(place: Site) -> None:
    """Remove an environment and its leftovers; the lock is held.

    Raises:
        InstallError: A process runs from it, or it cannot be removed.
    """
    if place.folder.exists():
        environments.check_unused(place)
    try:
        for leftover in (place.scratch, place.removed):
            if leftover.exists():
                shutil.rmtree(leftover)
        if place.folder.exists():
            # Renamed first, so that after a kill no partial environment looks complete.
            place.folder.rename(place.removed)
            shutil.rmtree(place.removed)
    except OSError as error:
        raise InstallError(
            f"{error.filename or place.folder} cannot be removed ({error.strerror or error})",
            advice=f"Remove {place.folder} by hand.",
        ) from error


def _kill_installers(place: Site) -> None:
    """Kill what an interrupted installation left running.

    The installer ends with the installing process; this is for the moment between.

    Raises:
        InstallError: A process does not end.
    """
    if pids := processes.end_marked(os.fspath(place.folder), _KILL_S):
        raise InstallError(
            f"Processes {', '.join(map(str, pids))} of an interrupted installation do not end",
            advice="End them, then try again.",
        )


class _Builder:
    """Fills the environment of a recipe, with uv if it is available, else with venv and pip."""

    def __init__(
        self, recipe: Recipe, site: Site, python: str, report: Report, *, keep_downloads: bool
    ) -> None:
        self._recipe = recipe
        self._site = site
        self._python = python
        self._report = report
        self._keep_downloads = keep_downloads
        self._begun_s = time.monotonic()
        self._installed = FolderMeter(site.folder)
        self._downloaded = FolderMeter(site.scratch)

    def build(self) -> str:
        """Fill the environment and return the folder that contains its distributions.

        Raises:
            InstallError: An installer failed, or installed something else than requested.
        """
        log = self._site.log
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        os.close(os.open(log, flags, _LOG_MODE))
        log.chmod(_LOG_MODE)
        self._site.scratch.mkdir(mode=0o700)
        uv = shutil.which("uv")
        failure = self._fill(uv)
        if uv and failure is not None and not failure.final:
            self._report(f"uv could not install {self._recipe} ({failure.cause}); trying pip")
            failure = self._fill(None)
        if failure is not None:
            advice = f"{failure.advice} The last lines: {last_lines(self._output(0))}."
            raise _failed(self._recipe, self._site, failure.cause, advice)
        return self._checked()

    def _fill(self, uv: str | None) -> Diagnosis | None:
        folder, python = os.fspath(self._site.folder), os.fspath(self._site.python)
        if uv is not None:
            kept = () if self._keep_downloads else ("--no-cache",)
            venv = ("venv", *kept, "--no-project", "--python", self._python, folder)
            # SGLang's kernels depend on pre-releases: without the option uv installs an old SGLang.
            # Bytecode is compiled now, so that the first start of a server need not do it.
            return self._run(uv, *venv) or self._run(
                *(uv, "pip", "install", *kept, "--python", python, "--prerelease=allow"),
                *("--compile-bytecode", *self._recipe.requirements),
            )
        kept = () if self._keep_downloads else ("--no-cache-dir",)
        return self._run(self._python, "-I", "-m", "venv", "--clear", folder) or self._run(
            *(python, "-I", "-m", "pip", "install", "--disable-pip-version-check", "--no-input"),
            *("--progress-bar", "off", "--no-warn-script-location", *kept),
            *self._recipe.requirements,
        )

    def _run(self, *command: str) -> Diagnosis | None:
        begin = self._site.log.stat().st_size
        with self._site.log.open("a", encoding="utf-8") as log:
            log.write(f"\n$ {' '.join(command)}\n")
        code = self._wait(*command)
        if code == 0:
            return None
        # If the shim was killed, the installer still runs, and nothing may write beside it.
        _kill_installers(self._site)
        return diagnose(code, self._output(begin))

    def _wait(self, *command: str) -> int:
        """Run a program to its end, which comes with this process's at the latest.

        The kernel's own death signal reaches only one process, and ``venv`` has pip as a child.
        So a shim ends the whole group when this process is gone.
        """
        read, write = os.pipe()
        shim = (self._python, "-I", "-S", pdeathsig.__file__, str(os.getpid()), str(read))
        scratch = self._site.scratch
        try:
            with self._site.log.open("ab") as output:
                popen = subprocess.Popen(  # noqa: S603 - the command is ours
                    [*shim, *command],
                    # Not the caller's folder, which may contain a project's settings.
                    cwd=scratch,
                    env=process_env.for_installer(os.fspath(self._site.folder), os.fspath(scratch)),
                    pass_fds=[read],
                    start_new_session=True,
                    # Programs that others of a shared group could write would not be run.
                    umask=_UMASK,
                    stdin=subprocess.DEVNULL,
                    stderr=subprocess.STDOUT,
                    stdout=output,
                )
            try:
                while True:
                    try:
                        return popen.wait(_TICK_S)
                    except subprocess.TimeoutExpired:
                        self._report_progress()
            finally:
                if popen.returncode is None:
                    # Ctrl-C did not reach the group, which is in its own session.
                    with suppress(ProcessLookupError):
                        os.killpg(popen.pid, signal.SIGKILL)
                    popen.wait()
        finally:
            os.close(read)
            os.close(write)

    def _report_progress(self) -> None:
        have, whole = self._installed.read(), self._recipe.bytes
        seconds = time.monotonic() - self._begun_s
        parts = [f"{in_words(have)} of {in_words(whole)}", f"{seconds:.0f} s"]
        if downloaded := self._downloaded.read():
            parts.insert(1, f"{in_words(downloaded)} downloaded")
        begin = max(0, self._site.log.stat().st_size - _TAIL_BYTES)
        tail = self._output(begin)
        if begin:
            # Without the first line, which may be cut inside a URL: its password would be shown.
            tail = tail.partition("\n")[2]
        doing = last_lines(tail, 1)[:_TAIL_CHARACTERS]
        self._report(f"installing {self._recipe}: {', '.join(parts)}: {doing}".rstrip(": "))

    def _checked(self) -> str:
        recipe, python = self._recipe, os.fspath(self._site.python)
        try:
            found = interpreters.query(python, recipe.distribution, recipe.modules)
        except OSError as error:
            raise self._wrong(f"{python} does not run ({error})") from error
        if found is None or found.version != recipe.version:
            version = "none" if found is None else found.version
            raise self._wrong(
                f"{recipe.distribution} {recipe.version} was requested, but {version} was installed"
            )
        if found.missing:
            raise self._wrong(f"{', '.join(found.missing)} cannot be imported afterwards")
        return found.packages

    def _wrong(self, cause: str) -> InstallError:
        advice = "Check the package index and its constraints (`pip config list`)."
        return _failed(self._recipe, self._site, cause, advice)

    def _output(self, begin: int) -> str:
        with self._site.log.open("rb") as file:
            file.seek(begin)
            return file.read().decode("utf-8", "replace")


# ------------------------------------------------------------ why an installer failed


@cache
def _rules() -> tuple[LogRule, ...]:
    return log_rules.load(Path(__file__).with_name("known_failures.toml"))


def diagnose(exit_code: int, output: str) -> Diagnosis:
    """Return why an installer failed, from its exit code and its output."""
    unknown = Diagnosis(f"the installer ended with code {exit_code}", "Read its log.")
    return log_rules.match(_rules(), output) or unknown


def last_lines(output: str, count: int = _TAIL_LINES) -> str:
    """Return the last meaningful lines, joined to one and without passwords."""
    lines = [line for line in output.splitlines() if not _NOISE.search(line)]
    return " / ".join(log_rules.excerpt(line) for line in lines[-count:])

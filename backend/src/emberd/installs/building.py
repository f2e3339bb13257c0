"""Filling an environment: with uv where it is there, else with venv and pip."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from emberd.errors import InstallError
from emberd.installs import probe, reasons, running, surroundings, users
from emberd.installs.environments import Site
from emberd.installs.recipes import Recipe

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

    def _run(self, *command: str) -> reasons.Failure | None:
        begin = self.site.log.stat().st_size
        _append(self.site.log, f"\n$ {_shown(command)}\n")
        code = running.run(
            command,
            python=self.python,
            environment=surroundings.of_installer(
                os.fspath(self.site.folder), os.fspath(self.site.scratch)
            ),
            folder=self.site.scratch,
            log=self.site.log,
            on_tick=self.tick,
        )
        if code == 0:
            return None
        # A shim that was killed leaves the installer running, which nothing may write beside.
        users.end_leftovers(self.site.folder)
        return reasons.why(code, self._said(begin))

    def _checked(self) -> str:
        recipe, python = self.recipe, os.fspath(self.site.python)
        try:
            found = probe.ask(python, recipe.distribution, recipe.modules)
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

    def _error(self, failure: reasons.Failure) -> InstallError:
        last = reasons.last_lines(self._said(0))
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

"""What a server lacks on this machine, an engine or weights: shown, confirmed and downloaded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import typer

from emberd import engines, hub_weights, installs, model_files, weight_files
from emberd.cli import options, output
from emberd.engines.base import EnvironmentEngine
from emberd.env import Places
from emberd.errors import DownloadNeededError, HubError
from emberd.hub_weights import Listing
from emberd.installs import Interpreter
from emberd.settings import ServerSpec, StartOptions
from emberd.system.disk_space import free_bytes, in_words

Report = Callable[[str], None]

ENGINE: Final = "engine"
WEIGHTS: Final = "weights"


@dataclass(frozen=True, slots=True)
class Item:
    """One download.

    Attributes:
        what: ``ENGINE`` or ``WEIGHTS``.
        name: The engine with its version, or the model.
        download_bytes: What would be transferred; 0 if it is unknown.
        disk_bytes: What is added on the disk.
        folder: Where to.
        is_estimate: The size was computed from the model's name, because the hub was not asked.
    """

    what: str
    name: str
    download_bytes: int
    disk_bytes: int
    folder: str
    is_estimate: bool = False

    def __str__(self) -> str:
        about = "about " if self.is_estimate else ""
        size = f"{about}{in_words(self.download_bytes)}" if self.download_bytes else "unknown size"
        if self.disk_bytes != self.download_bytes:
            size += f" ({in_words(self.disk_bytes)} on the disk)"
        free = in_words(free_bytes(Path(self.folder)))
        return f"{self.what} {self.name}: {size} to {self.folder} ({free} free)"

    def as_content(self) -> dict[str, Any]:
        """Return its JSON form."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Downloads:
    """What has to be downloaded before a server of ``spec`` can be started.

    Attributes:
        spec: The server.
        engine: The engine whose environment is missing; None if none is.
        weights: Whether files of the model are missing.
    """

    spec: ServerSpec
    engine: str | None
    weights: bool

    @property
    def interpreter(self) -> Interpreter | None:
        """The interpreter that the missing engine would have; None if none is missing."""
        return installs.planned(self.engine, Places.resolve()) if self.engine else None

    def list_weights(self) -> Listing | None:
        """Ask the hub for the files of the model; None if none are missing.

        Raises:
            HubError: It does not say.
        """
        return hub_weights.list_files(self.spec.model, self.spec.revision) if self.weights else None

    def items(self, listing: Listing | None = None) -> Iterator[Item]:
        """Yield the downloads.

        Args:
            listing: What the hub has of the model; None to estimate its size.
        """
        if self.engine:
            recipe = installs.RECIPES[self.engine]
            folder = str(installs.site(recipe, Places.resolve()).folder)
            sizes = recipe.download_bytes, recipe.bytes
            yield Item(ENGINE, str(recipe), *sizes, folder)
        if self.weights:
            model = self.spec.model
            size = listing.missing_bytes if listing else weight_files.estimated_bytes(model)
            folder = str(model_files.hub_folder(model))
            yield Item(WEIGHTS, model, size, size, folder, is_estimate=listing is None)

    def estimated_items(self) -> list[Item]:
        """Return the downloads, with estimated sizes where the hub does not say them."""
        try:
            return list(self.items(self.list_weights()))
        except HubError:
            return list(self.items())

    def obtain(self, report: Report, *, assume_yes: bool) -> None:
        """Ask the user, unless ``assume_yes``, and download.

        Raises:
            DownloadNeededError: There is no terminal to ask on, or the answer was no.
            HubError: The weights cannot be downloaded.
            InstallError: The engine cannot be installed.
        """
        if not assume_yes and not is_terminal():
            raise DownloadNeededError(self._refusal())
        listing = None
        if self.weights and assume_yes and find_spec("huggingface_hub") is None:
            report("huggingface_hub is not installed, so the engine downloads the weights itself")
        else:
            listing = self.list_weights()  # before the engine, because it may fail
        if not assume_yes:
            output.note(f"A server of {self.spec.model} needs downloads:")
            for item in self.items(listing):
                output.note(f"  {item}")
            if not typer.confirm("Download and start?", default=True, err=True):
                raise DownloadNeededError(
                    f"No file was downloaded, and no server was started. `{self._pull}` downloads "
                    f"without starting one."
                )
        if self.engine:
            installs.install(self.engine, Places.resolve(), report)
        if listing:
            hub_weights.fetch(listing, report)

    @property
    def _pull(self) -> str:
        return options.command_line("pull", self.spec)

    def _refusal(self) -> str:
        items = "; ".join(map(str, self.estimated_items()))
        return (
            f"A server of {self.spec.model} needs downloads, and there is no terminal to ask on: "
            f"{items}. To allow them, repeat the command with --yes, or download beforehand with "
            f"`{self._pull}`."
        )


def find(spec: ServerSpec, started: StartOptions) -> Downloads | None:
    """Return what a server of ``spec`` lacks here; None if it lacks nothing, or cannot run here.

    Asks no hub: reads the environments of engines and the hub's cache. Weights that the engine
    takes from elsewhere are left to it.

    Raises:
        SettingError: The engine is unknown, or a variable names an unusable interpreter.
    """
    choice = engines.explain(spec)
    missing = None if choice.engine else choice.installable
    engine = choice.engine or (engines.load(missing) if missing else None)
    lacks_weights = (
        isinstance(engine, EnvironmentEngine)
        and engine.uses_hub_cache(spec, started)
        and not _is_complete(spec)
    )
    return Downloads(spec, missing, lacks_weights) if missing or lacks_weights else None


def is_terminal() -> bool:
    """Return whether the user can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def _is_complete(spec: ServerSpec) -> bool:
    snapshot = model_files.hub_snapshot(spec.model, spec.revision)
    return snapshot is not None and not weight_files.missing_files(snapshot)

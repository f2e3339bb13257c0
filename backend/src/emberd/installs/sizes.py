"""How much room an environment takes, and whether there is as much."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Final

from emberd.errors import InstallError
from emberd.installs.recipes import Recipe

_SPARE: Final = 1.15
_BLOCK_BYTES: Final = 512
_GB: Final = 1_000_000_000
_MB: Final = 1_000_000
_LEAST_PAUSE_S: Final = 3.0
_SHARE: Final = 20  # of the time at most one part in so many goes into measuring


def check_room(recipe: Recipe, engines: Path) -> bool:
    """Check that the disk holds what is installed and, meanwhile, what is downloaded for it.

    Returns:
        Whether there is room to keep the downloads as well, in the installer's own cache: an
        installation that is repeated needs no network then.

    Raises:
        InstallError: There is no room; says what there is, what is needed, and where.
    """
    free = shutil.disk_usage(_existing(engines)).free
    needed = round(recipe.bytes * _SPARE) + recipe.download_bytes
    if free < needed:
        raise InstallError(
            f"{recipe} needs {in_words(needed)} on the disk of {engines} "
            f"({in_words(recipe.bytes)} installed, the rest meanwhile), and "
            f"{in_words(free)} are free",
            advice="Make room, or set EMBERD_ENGINES to a folder on another disk.",
        )
    return free >= needed + recipe.download_bytes


def in_words(size_bytes: int) -> str:
    """Return a size as people read it: ``10.5 GB``, ``340 MB``."""
    if size_bytes < _GB:
        return f"{size_bytes / _MB:.0f} MB"
    return f"{size_bytes / _GB:.1f} GB"


def used_bytes(folder: Path) -> int:
    """Return what ``folder`` takes on the disk; 0 where there is none."""
    total = 0
    folders = [os.fspath(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    total += entry.stat(follow_symlinks=False).st_blocks * _BLOCK_BYTES
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except OSError:
            continue  # it is being written, or removed: what was there a moment ago may be gone
    return total


class Meter:
    """The size of a folder that grows, measured only so often that it costs next to nothing.

    An environment has 100,000 files: looking at each takes about a second.
    """

    def __init__(self, folder: Path) -> None:
        """Measure ``folder``."""
        self._folder = folder
        self._bytes = 0
        self._next_s = 0.0

    def read(self) -> int:
        """Return the size in bytes when it was last measured, which was some seconds ago."""
        begun_s = time.monotonic()
        if begun_s >= self._next_s:
            self._bytes = used_bytes(self._folder)
            ended_s = time.monotonic()
            self._next_s = ended_s + max(_LEAST_PAUSE_S, _SHARE * (ended_s - begun_s))
        return self._bytes


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder

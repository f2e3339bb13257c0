"""Space on disks: what is free, what a folder takes, and sizes in words."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Final

_BLOCK_BYTES: Final = 512
_GB: Final = 1_000_000_000
_MB: Final = 1_000_000
_LEAST_PAUSE_S: Final = 3.0
_MOST_TIME: Final = 20  # at most one part in this many of the time is spent on measuring


def free_bytes(folder: Path) -> int:
    """Return the free space on the disk of a folder, which need not exist."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def in_words(size_bytes: int) -> str:
    """Return a size for display: ``10.5 GB``, ``340 MB``."""
    if size_bytes < _GB:
        return f"{size_bytes / _MB:.0f} MB"
    return f"{size_bytes / _GB:.1f} GB"


def used_bytes(folder: Path) -> int:
    """Return the disk space that ``folder`` takes; 0 if it does not exist."""
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
            continue  # it is being written or removed, so entries may have disappeared
    return total


class FolderMeter:
    """The size of a growing folder, measured rarely enough to cost little.

    An environment has 100,000 files, which take about a second to measure.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bytes = 0
        self._next_s = 0.0

    def read(self) -> int:
        """Return the size in bytes at the last measurement, at most some seconds ago."""
        begun_s = time.monotonic()
        if begun_s >= self._next_s:
            self._bytes = used_bytes(self._folder)
            ended_s = time.monotonic()
            self._next_s = ended_s + max(_LEAST_PAUSE_S, _MOST_TIME * (ended_s - begun_s))
        return self._bytes

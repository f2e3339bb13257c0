"""A real file system that is small: filled, freed, and made read-only. Only root can mount it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest


class Disk:
    """A file system of 256 KiB."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Leave no byte free."""
        with self._filler.open("ab", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass

    def free(self) -> None:
        """Give all of it back."""
        self._filler.unlink(missing_ok=True)

    def remount(self, option: str) -> None:
        """Make it read-only (``ro``) or writable again (``rw``)."""
        subprocess.run(["mount", "-o", f"remount,{option}", self.folder], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A separate small file system."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-o", "size=256k,mode=700"]
    mounted = subprocess.run(["mount", "-t", "tmpfs", *options, "emberd-test", folder])
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        yield Disk(folder)
    finally:
        # Lazily: a process that a failed test left may still use it.
        subprocess.run(["umount", "-l", folder], check=True)

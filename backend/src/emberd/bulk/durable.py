"""Files that are there whole or not at all, and stay when the power goes."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from emberd.errors import EmberdError

UNFINISHED: Final = ".unfinished"
"""How names of files end that are being written."""

_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that becomes ``path`` at the end; what fails leaves ``path`` as it was."""
    fresh = path.with_name(path.name + UNFINISHED)
    try:
        with fresh.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        move(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def move(source: Path, target: Path) -> None:
    """Rename ``source`` to ``target``, for good."""
    source.replace(target)
    sync(target.parent)


def sync(folder: Path) -> None:
    """Have the names in ``folder`` on the disk."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # Windows opens no folders
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def linked(source: Path, target: Path) -> None:
    """Have ``target`` be the file ``source``, or a copy where a file has one name only."""
    try:
        os.link(source, target)
    except OSError:
        with source.open("rb") as old, written(target) as new:
            shutil.copyfileobj(old, new)


@contextmanager
def room_for(output: Path) -> Iterator[None]:
    """Say what to do where the disk that ``output`` lies on is full.

    Raises:
        EmberdError: It is.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise EmberdError(
            f"{output} could not be written: {error.strerror}. What was done is kept: make room "
            f"there, and run the same command again to go on."
        ) from error

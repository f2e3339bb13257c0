"""The folder beside the output where the work is done: for one run at a time, gone at the end."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from emberd.bulk import manifest
from emberd.errors import EmberdError, SettingError

STAGED: Final = "staged"
"""Its folder for the output that is being assembled."""

_ENDING: Final = ".parts"
_LOCK: Final = "lock"
_ATTEMPTS: Final = 10


def beside(output: Path) -> Path:
    """Return the folder for the work on ``output``: on the same disk, so that renames will do."""
    return output.with_name(output.name + _ENDING)


@contextmanager
def held(output: Path) -> Iterator[Path]:
    """Yield the folder for the work on ``output``, which no other run has meanwhile.

    Raises:
        EmberdError: Another run has it.
        SettingError: A folder of that name is there, and is none of ours.
    """
    from filelock import FileLock, Timeout

    folder = beside(output)
    _refuse_foreign(folder)
    lock = FileLock(folder / _LOCK, fallback_to_soft=False, preserve_lock_file=True)
    for attempt in range(_ATTEMPTS):
        folder.mkdir(exist_ok=True)
        try:
            lock.acquire(timeout=0)
            break
        except Timeout:
            raise EmberdError(
                f"{output} is being written by another run ({_holder(folder)}). Wait for it, or "
                f"end it: what it has done is kept."
            ) from None
        except FileNotFoundError:
            # A run that ended took the folder away in between.
            if attempt == _ATTEMPTS - 1:
                raise
    try:
        with suppress(OSError):
            (folder / _LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield folder
    finally:
        lock.release()


def emptied(folder: Path) -> None:
    """Delete all that was done; the manifest last, so that a kill in between loses no meaning."""
    for path in list(folder.iterdir()):
        if path.name not in (_LOCK, manifest.NAME):
            cleared(path)
    manifest.remove(folder)


def cleared(path: Path) -> None:
    """Delete a file, or a folder and what it holds, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def removed(folder: Path) -> None:
    """Delete the folder, which this process holds."""
    emptied(folder)
    (folder / _LOCK).unlink(missing_ok=True)
    # Another run may have come in that moment, and has a lock of its own there now.
    with suppress(OSError):
        folder.rmdir()


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    if names - {_LOCK} and not any(name.startswith(manifest.NAME) for name in names):
        raise SettingError(
            f"{folder} is needed for the work and is there already, with other files. Move it "
            f"away, or give another --output."
        )


def _holder(folder: Path) -> str:
    with suppress(OSError):
        return (folder / _LOCK).read_text() or "just begun"
    return "just begun"

"""OUTPUT.parts/, the work folder of a job: its lock and its manifest.

One run at a time works in the folder. The manifest says what was requested, so that a run never
continues a job with other parameters. The folder is deleted when the output is in its place.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from emberd.bulk.request import Stamps
from emberd.errors import EmberdError, SettingError
from emberd.system import atomic_file, file_lock

STAGED: Final = "staged"
"""Subfolder in which the output is assembled."""

_LOCK: Final = "lock"
_MANIFEST: Final = "manifest.json"
_VERSION: Final = 3
_ATTEMPTS: Final = 10
_SHOWN_CHANGES: Final = 3


@dataclass(slots=True)
class Manifest:
    """What was requested, and the progress of the job.

    Attributes:
        request: Parameters that must be the same when a run continues the job.
        inputs: Size and time of change of each input file.
        run: Random id of the latest run. Workers of earlier runs stop writing.
        is_assembled: Whether the output is complete, and is being moved to its place.
        rows: Number of rows of the input; set when the output is assembled.
        rejected: Number of rows without vectors; set when the output is assembled.
    """

    request: dict[str, Any]
    inputs: Stamps
    run: str = field(default_factory=lambda: uuid.uuid4().hex)
    is_assembled: bool = False
    rows: int = 0
    rejected: int = 0

    def save(self, folder: Path) -> None:
        """Write the manifest into ``folder``."""
        content = {"version": _VERSION, **asdict(self)}
        with atomic_file.replacing(folder / _MANIFEST) as file:
            file.write(json.dumps(content, indent=1).encode())

    def differences(self, wanted: Manifest) -> list[str]:
        """Return descriptions of what differs in ``wanted``."""
        names = [name for name in wanted.request if self.request.get(name) != wanted.request[name]]
        found = [f"{n} {self.request.get(n)!r} then, {wanted.request[n]!r} now" for n in names]
        return found + _changed_files(self.inputs, wanted.inputs)

    def check_unchanged(self, inputs: Stamps) -> None:
        """Check that the input is still what it was when the job began.

        Raises:
            SettingError: A file has changed.
        """
        if changes := _changed_files(self.inputs, inputs):
            raise SettingError(
                f"The input changed while it was read: {'; '.join(changes)}. Pass --restart to "
                f"start again."
            )


def load_manifest(folder: Path) -> Manifest | None:
    """Return the manifest in ``folder``; None if there is none.

    Raises:
        SettingError: Another version of emberd wrote it.
    """
    try:
        content = json.loads((folder / _MANIFEST).read_bytes())
    except FileNotFoundError:
        return None
    if content.pop("version", None) != _VERSION:
        raise SettingError(
            f"{folder} was written by another version of emberd. Continue with that version, or "
            f"pass --restart to start again."
        )
    return Manifest(**content)


def has_manifest(folder: Path) -> bool:
    """Return whether ``folder`` contains a manifest, of whichever version."""
    return (folder / _MANIFEST).exists()


def check_run(folder: Path, run: str) -> None:
    """Check in a worker of ``run`` that no later run has taken over ``folder``.

    Raises:
        EmberdError: A later run has taken over.
    """
    manifest = load_manifest(folder)
    if manifest is None or manifest.run != run:
        raise EmberdError(
            f"Another run has taken over {folder}; this worker stops. Wait for that run."
        )


def folder_of(output: Path) -> Path:
    """Return the work folder of ``output``: beside it, on the same disk, for renames."""
    return output.with_name(output.name + ".parts")


@contextmanager
def work_folder(output: Path) -> Iterator[Path]:
    """Hold the lock on the work folder of ``output`` and yield the folder.

    Raises:
        EmberdError: Another run holds it.
        SettingError: The folder exists and contains other files.
    """
    folder = folder_of(output)
    _check_own(folder)
    note = f"process {os.getpid()} on {socket.gethostname()}"
    with ExitStack() as lock:
        for _ in range(_ATTEMPTS):
            folder.mkdir(exist_ok=True)
            try:
                descriptor = lock.enter_context(file_lock.held(folder / _LOCK, 0, note=note))
            except FileNotFoundError:
                continue  # a run that ended deleted the folder in between
            except file_lock.LockHeldError as error:
                raise EmberdError(
                    f"{output} is being written by another run "
                    f"({error.holder or 'just started'}). Wait for it to finish, or "
                    f"stop it: finished work is kept."
                ) from None
            # A run that ended may have deleted the file between our opening and locking it.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), (folder / _LOCK).stat()):
                    break
            lock.close()
        else:
            raise EmberdError(
                f"{folder} could not be locked: other runs keep deleting it. Wait for the other "
                f"runs, then try again."
            )
        yield folder


def clear(folder: Path) -> None:
    """Delete the content of the work folder; the manifest last, in case of a kill in between."""
    for path in list(folder.iterdir()):
        if path.name not in (_LOCK, _MANIFEST):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (folder / _MANIFEST).unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Delete the work folder, whose lock this process holds."""
    clear(folder)
    (folder / _LOCK).unlink(missing_ok=True)
    # Another run may have entered in the meantime, with its own lock.
    with suppress(OSError):
        folder.rmdir()


def _check_own(folder: Path) -> None:
    """Raise if ``folder`` exists and was not made by emberd."""
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    others = {n for n in names if n != _LOCK and not n.endswith(atomic_file.UNFINISHED)}
    if others and _MANIFEST not in names:
        raise SettingError(
            f"The work folder {folder} exists and contains files that emberd did not create. "
            f"Move it, or pass another --output."
        )


def _changed_files(old: Stamps, new: Stamps) -> list[str]:
    if list(old) != list(new):
        gone = [f"{path} is gone" for path in old if path not in new][:_SHOWN_CHANGES]
        more = [f"{path} is new" for path in new if path not in old][:_SHOWN_CHANGES]
        named = ", ".join(gone + more) or "in another order"
        return [f"the number of input files changed from {len(old)} to {len(new)} ({named})"]
    return [
        f"the size of {path} changed from {old[path][0]} to {new[path][0]} bytes"
        if old[path][0] != new[path][0]
        else f"{path} was modified"
        for path in old
        if old[path] != new[path]
    ][:_SHOWN_CHANGES]

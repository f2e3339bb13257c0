"""One process at a time installs or removes an engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from emberd.env import Places
from emberd.errors import InstallError
from emberd.installs.environments import engines_folder

if TYPE_CHECKING:
    from filelock import BaseFileLock

_LINE_EVERY_S: Final = 10.0
_POLL_S: Final = 0.1
_NO_WAIT_S: Final = 0.0


@contextmanager
def held(engines: Path, name: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of an engine, waiting for whoever has it and saying so.

    The kernel frees it when its holder dies, however that died.

    Raises:
        InstallError: The folder cannot be made or written, or knows no locks.
    """
    path = _prepared(engines, name)
    lock = _lock(path)
    patience_s = _NO_WAIT_S
    while not _acquired(lock, path, patience_s):
        tell(f"waiting for {_holder(path)}, which installs or removes {name}")
        patience_s = _LINE_EVERY_S
    with _owned(lock, path):
        yield


@contextmanager
def held_at_once(engines: Path, name: str) -> Iterator[None]:
    """Hold the lock of an engine.

    Raises:
        InstallError: Another process has it, which is named; or as for ``held``.
    """
    path = _prepared(engines, name)
    lock = _lock(path)
    if not _acquired(lock, path, _NO_WAIT_S):
        raise InstallError(
            f"{name} is being installed or removed by {_holder(path)}",
            advice="Wait for it, or end that process, then try again.",
        )
    with _owned(lock, path):
        yield


def holder(places: Places, name: str) -> str | None:
    """Return who installs or removes an engine just now, as a text for people."""
    path = engines_folder(places) / f"{name}.lock"
    if not path.exists():
        return None
    lock = _lock(path)
    if not _acquired(lock, path, _NO_WAIT_S):
        return _holder(path)
    lock.release()
    return None


def _prepared(engines: Path, name: str) -> Path:
    try:
        engines.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(engines, error) from error
    return engines / f"{name}.lock"


def _lock(path: Path) -> BaseFileLock:
    # Imported late: whoever looks for an installed engine takes no lock.
    from filelock import FileLock

    # A soft lock is a file that a killed process leaves behind; deleting the file of a hard one
    # splits those who wait for it over two inodes.
    return FileLock(path, fallback_to_soft=False, preserve_lock_file=True, mode=0o600)


def _acquired(lock: BaseFileLock, path: Path, timeout_s: float) -> bool:
    from filelock import Timeout

    try:
        lock.acquire(timeout=timeout_s, poll_interval=_POLL_S)
    except Timeout:
        return False
    except OSError as error:
        raise _unwritable(path, error) from error
    return True


@contextmanager
def _owned(lock: BaseFileLock, path: Path) -> Iterator[None]:
    # For people only: what holds is the lock, whatever the text says.
    with suppress(OSError):
        path.write_text(f"process {os.getpid()}")
    try:
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    try:
        return path.read_text() or "another process"
    except OSError:
        return "another process"


def _unwritable(path: Path, error: OSError) -> InstallError:
    return InstallError(
        f"{path} cannot be made or locked ({error.strerror or error})",
        advice="Set EMBERD_ENGINES to a folder on a local disk that you may write to.",
    )

"""Processes that an environment is in use by, or that an interrupted installation left."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from emberd import env
from emberd.errors import InstallError

if TYPE_CHECKING:
    import psutil

_KILL_S: Final = 10.0
_COMMAND_WORDS: Final = 2  # the interpreter, and the script that it runs
_SHOWN_CHARACTERS: Final = 80


def running_from(folder: Path) -> Iterator[str]:
    """Yield the processes that run from an environment, each as a text for people."""
    import psutil

    for process in psutil.process_iter():
        try:
            if _runs_from(process, os.fspath(folder)):
                words = " ".join(process.cmdline()) or process.name()
                yield f"{process.pid} ({words[:_SHOWN_CHARACTERS]})"
        except (psutil.Error, OSError):
            continue  # it has ended, or is somebody else's


def end_leftovers(folder: Path) -> None:
    """Kill what an interrupted installation of ``folder`` left, and wait until it is gone.

    The shim does so at once when the installing process dies; this is for the moment between.

    Raises:
        InstallError: Something does not go.
    """
    import psutil

    left = [process for process in psutil.process_iter() if _is_marked(process, folder)]
    for process in left:
        try:
            process.kill()
        except psutil.Error:
            continue
    _, alive = psutil.wait_procs(left, timeout=_KILL_S)
    stay = [process.pid for process in alive if _is_marked(process, folder)]
    if stay:
        raise InstallError(
            f"Processes {', '.join(map(str, stay))} of an interrupted installation do not end",
            advice="End them, then try again.",
        )


def _is_marked(process: psutil.Process, folder: Path) -> bool:
    import psutil

    try:
        if process.uids().real != os.getuid() or process.status() == psutil.STATUS_ZOMBIE:
            return False
        return process.environ().get(env.INSTALL_MARK) == os.fspath(folder)
    except (psutil.Error, OSError):
        return False


def _runs_from(process: psutil.Process, folder: str) -> bool:
    inside = folder + os.sep
    if any(word.startswith(inside) for word in process.cmdline()[:_COMMAND_WORDS]):
        return True
    if process.exe().startswith(inside):
        return True
    return sys.platform == "linux" and _has_mapped(process.pid, inside)


def _has_mapped(pid: int, inside: str) -> bool:
    # Parts of a server rename themselves, and their program is the Python that the environment
    # was made of; the libraries that they have loaded are the environment's.
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as maps:
        return inside in maps.read()

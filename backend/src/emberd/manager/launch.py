"""Starting a supervisor: a process of its own that survives whoever asked for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from emberd.errors import StartError
from emberd.system import processes

SUPERVISOR_MODULE: Final = "emberd.verified_manager"


def start_supervisor(folder: Path, start_id: str, alive: int, log: Path) -> None:
    """Start the supervisor of ``folder`` and hand it the proof of life.

    The supervisor forks once more by itself, so this returns as soon as its first process is gone,
    and nobody but init is its parent: no zombie stays with the caller.

    Args:
        folder: The server's state folder.
        start_id: The name of this start.
        alive: Descriptor that holds the proof of life; it is inherited, never unlocked.
        log: The server's log, which takes what the supervisor has to say.

    Raises:
        StartError: It could not be run.
    """
    if not sys.executable:
        raise StartError(
            "This Python is embedded and names no interpreter to run a supervisor with",
            advice="Run `emberd up` in a terminal first, or give base_url=.",
        )
    command = [sys.executable, "-P", "-m", SUPERVISOR_MODULE, str(folder), start_id, str(alive)]
    with log.open("ab") as output:
        result = subprocess.run(  # noqa: S603 - our own module
            command,
            # The caller's streams stay the caller's: `eval "$(emberd env)"` waits for every
            # process that holds its pipe.
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[alive],
            start_new_session=True,
            cwd="/",
            env=_environment(),
            check=False,
        )
    if result.returncode != 0:
        raise StartError(
            f"The supervisor could not be run (exit code {result.returncode})",
            advice=f"Try: {sys.executable} -c 'import {SUPERVISOR_MODULE}'",
            log_path=str(log),
        )


def _environment() -> dict[str, str]:
    # A caller that some other server started bears that one's mark; a supervisor must bear none.
    kept = {name: value for name, value in os.environ.items() if name != processes.MARK}
    # The supervisor finds emberd, and an engine named by its module, wherever the caller does: also
    # in a folder that only sys.path of the caller knows.
    return kept | {"PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path)}

"""Starting a keeper: a process of its own that survives whoever asked for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from emberd.errors import StartError
from emberd.manager import process

KEEPER_MODULE: Final = "emberd.keeper"


def start_keeper(folder: Path, nonce: str, alive: int, log: Path) -> None:
    """Start the keeper of ``folder`` and hand it the proof of life.

    The keeper forks once more by itself, so this returns as soon as its first process is gone,
    and nobody but init is its parent: no zombie stays with the caller.

    Args:
        folder: The server's state folder.
        nonce: The name of this start.
        alive: Descriptor that holds the proof of life; it is inherited, never unlocked.
        log: The server's log, which takes what the keeper has to say.

    Raises:
        StartError: It could not be run.
    """
    if not sys.executable:
        raise StartError(
            "This Python is embedded and names no interpreter to run a keeper with",
            advice="Run `emberd up` in a terminal first, or give base_url=.",
        )
    command = [sys.executable, "-P", "-m", KEEPER_MODULE, str(folder), nonce, str(alive)]
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
            f"The keeper could not be run (exit code {result.returncode})",
            advice=f"Try: {sys.executable} -c 'import {KEEPER_MODULE}'",
            log_path=str(log),
        )


def _environment() -> dict[str, str]:
    # A caller that some other server started bears that one's mark; a keeper must bear none.
    kept = {name: value for name, value in os.environ.items() if name != process.MARK}
    # The keeper finds emberd, and an engine named by its module, wherever the caller does: also
    # in a folder that only sys.path of the caller knows.
    return kept | {"PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path)}

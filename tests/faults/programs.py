"""Runs a program of the campaign in a separate process, which may fork and mount."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

from managed import environment

_SHOWN: Final = 20_000


def run(module: str, *arguments: object) -> str:
    """Run ``python -m MODULE ARGUMENTS``, print what it prints, and return that.

    Raises:
        AssertionError: It has found something.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-_SHOWN:]
    return done.stdout

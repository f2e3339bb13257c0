"""What the engines share that are served by our own server (``emberd.serving``)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import PurePath
from typing import Final

from emberd.engines.base import Launch
from emberd.serving import BOOTSTRAP, MODULE

_HOST: Final = "127.0.0.1"
_ENCODER: Final = "--encoder"
_SCRIPT: Final = (*MODULE.split("."), BOOTSTRAP)


def address(launch: Launch) -> tuple[str, ...]:
    """Return the words that tell our server where to listen."""
    if launch.descriptor is not None:
        return ("--fd", str(launch.descriptor))
    return ("--host", _HOST, "--port", str(launch.port))


def encoder_of(command: Sequence[str]) -> str | None:
    """Return which encoder a process with this command line serves.

    Returns:
        The empty text when the command names none; None when it is not our server.
    """
    # The words that Python leaves: "-m" and the module, whatever stands around them.
    as_module = any(option == "-m" and module == MODULE for option, module in pairwise(command))
    if not as_module and not any(PurePath(word).parts[-3:] == _SCRIPT for word in command[1:]):
        return None
    for option, value in pairwise(command):
        if option == _ENCODER:
            return value
    joined = f"{_ENCODER}="
    return next((word.removeprefix(joined) for word in command if word.startswith(joined)), "")

"""What the exit codes of the command mean: the one place that knows."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from emberd import errors


class Code(IntEnum):
    """Exit codes of every verb."""

    OK = 0
    ERROR = 1
    USAGE = 2
    NOTHING_RUNNING = 3
    NO_ENGINE = 4
    START_FAILED = 5
    SOME_SET_ASIDE = 6
    INTERRUPTED = 130


MEANINGS: Final[dict[Code, str]] = {
    Code.OK: "it worked",
    Code.ERROR: "it failed: the reason is on stderr; or its reader left (| head), which is silent",
    Code.USAGE: "wrong usage: an option, or an EMBERD_ variable, has a value that cannot be used",
    Code.NOTHING_RUNNING: "there is no server (status, logs)",
    Code.NO_ENGINE: "no engine can serve the model on this machine",
    Code.START_FAILED: "a server did not start, or not in time",
    Code.SOME_SET_ASIDE: "embed: the output is whole but for rows that were set aside",
    Code.INTERRUPTED: "interrupted; a server that is starting goes on starting",
}

_OF_ERRORS: Final[tuple[tuple[type[errors.EmberdError], Code], ...]] = (
    (errors.SettingError, Code.USAGE),
    (errors.NoEngineError, Code.NO_ENGINE),
    (errors.StartError, Code.START_FAILED),
    (errors.StartTimeoutError, Code.START_FAILED),
    (errors.LockTimeoutError, Code.START_FAILED),
)


def of(error: BaseException) -> Code:
    """Return the exit code for ``error``."""
    for kind, code in _OF_ERRORS:
        if isinstance(error, kind):
            return code
    return Code.ERROR


def table() -> str:
    """Return the codes and their meanings, one a line, as ``emberd --help`` shows them."""
    return "\n".join(f"  {code:>3}  {meaning}" for code, meaning in MEANINGS.items())

"""Why an installer failed, from what it said."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_TAIL_LINES: Final = 3
_LINE_CHARACTERS: Final = 300
_SECRET: Final = re.compile(r"(://)[^/@\s]+@")
_NOISE: Final = re.compile(r"WARNING: (Location|Retrying)|\[notice\]|^\$ |^\s*$")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an installer failed.

    Attributes:
        cause: What happened, in one sentence.
        advice: What to do about it.
        final: Another installer would fail of the same.
    """

    cause: str
    advice: str
    final: bool = False


@dataclass(frozen=True, slots=True)
class _Sign:
    pattern: re.Pattern[str]
    failure: Failure


def _sign(pattern: str, cause: str, advice: str, *, final: bool = False) -> _Sign:
    return _Sign(re.compile(pattern, re.IGNORECASE), Failure(cause, advice, final))


_INDEX: Final = (
    "Look at the network, the proxy (HTTPS_PROXY) and the index (`pip config list`, "
    "PIP_INDEX_URL), then run it again."
)

# The most specific first: a disk that is full, and a network that is away, end in other errors.
_SIGNS: Final = (
    _sign(
        r"No space left on device|Errno 28\b|os error 28\b|Disk quota exceeded|Errno 122\b",
        "the disk is full",
        "Make room (the last lines say where), or set EMBERD_ENGINES to a folder on another disk; "
        "then run it again.",
        final=True,
    ),
    _sign(
        r"CERTIFICATE_VERIFY_FAILED|SSLError|invalid peer certificate",
        "the package index's certificate is not trusted here",
        "Name the certificates of your network (PIP_CERT, SSL_CERT_FILE), then run it again.",
    ),
    _sign(
        r"Name or service not known|name resolution|nodename nor servname|NewConnectionError"
        r"|Connection refused|Network is unreachable|ConnectTimeout|Read timed out|ReadTimeout"
        r"|ProxyError|dns error|tcp connect error|error sending request|Failed to fetch"
        r"|Connection (reset|aborted|broken)|IncompleteRead",
        "the package index does not answer",
        _INDEX,
    ),
    _sign(
        r"\b(401|403) (Client )?(Error|Unauthorized|Forbidden)|status code: 40[13]",
        "the package index refuses access",
        _INDEX,
    ),
    _sign(
        r"do not match the hashes|hash mismatch",
        "a file arrived damaged",
        "Run `pip cache purge`, then run it again.",
    ),
    _sign(
        r"No matching distribution found|Could not find a version|No solution found"
        r"|ResolutionImpossible|not found in the package registry",
        "the package index does not have what is needed",
        _INDEX,
    ),
    _sign(
        r"ensurepip is not available|No module named '?(ensurepip|venv)|ensurepip.*non-zero",
        "this Python cannot make environments",
        "Install its venv package (Debian, Ubuntu: apt install python3-venv), or uv.",
        final=True,
    ),
    _sign(
        r"MemoryError|Cannot allocate memory|os error 12\b",
        "the memory was used up",
        "Free some memory, then run it again.",
        final=True,
    ),
    _sign(
        r"Permission denied|Errno 13\b|Read-only file system|Operation not permitted",
        "something cannot be written",
        "Set EMBERD_ENGINES to a folder that you may write to.",
        final=True,
    ),
)


def why(exit_code: int, said: str) -> Failure:
    """Return why an installer failed.

    Args:
        exit_code: As ``subprocess`` gives it.
        said: What it wrote.
    """
    for sign in _SIGNS:
        if sign.pattern.search(said):
            return sign.failure
    return Failure(f"the installer ended with code {exit_code}", "Look at its log.")


def last_lines(said: str, count: int = _TAIL_LINES) -> str:
    """Return the last lines that say something, on one line, without passwords."""
    lines = [line.strip() for line in said.splitlines() if not _NOISE.search(line)]
    hidden = [_SECRET.sub(r"\1***@", line) for line in lines[-count:]]
    return " / ".join(line[:_LINE_CHARACTERS] for line in hidden)

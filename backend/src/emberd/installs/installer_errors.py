"""Why an installer failed, from its output."""

from __future__ import annotations

import re
from typing import Final

from emberd.system import log_rules
from emberd.system.log_rules import Diagnosis, LogRule

_TAIL_LINES: Final = 3
_NOISE: Final = re.compile(r"WARNING: (Location|Retrying)|\[notice\]|^\$ |^\s*$")
_INDEX: Final = (
    "Check the network, the proxy (HTTPS_PROXY) and the index (`pip config list`, "
    "PIP_INDEX_URL), then run it again."
)


def _rule(name: str, pattern: str, cause: str, advice: str, *, final: bool = False) -> LogRule:
    return LogRule(name, re.compile(pattern, re.IGNORECASE), cause, advice, final=final)


# The most specific first: a full disk and an unreachable network also cause other errors.
RULES: Final = (
    _rule(
        "disk full",
        r"No space left on device|Errno 28\b|os error 28\b|Disk quota exceeded|Errno 122\b",
        "the disk is full",
        "Free some space (the last lines say where), or set EMBERD_ENGINES to a folder on another "
        "disk; then run it again.",
        final=True,
    ),
    _rule(
        "certificate",
        r"CERTIFICATE_VERIFY_FAILED|SSLError|invalid peer certificate",
        "the package index's certificate is not trusted on this machine",
        "Name the certificates of your network (PIP_CERT, SSL_CERT_FILE), then run it again.",
    ),
    _rule(
        "network",
        r"Name or service not known|name resolution|nodename nor servname|NewConnectionError"
        r"|Connection refused|Network is unreachable|ConnectTimeout|Read timed out|ReadTimeout"
        r"|ProxyError|dns error|tcp connect error|error sending request|Failed to fetch"
        r"|Connection (reset|aborted|broken)|IncompleteRead",
        "the package index does not answer",
        _INDEX,
    ),
    _rule(
        "access",
        r"\b(401|403) (Client )?(Error|Unauthorized|Forbidden)|status code: 40[13]",
        "the package index refuses access",
        _INDEX,
    ),
    _rule(
        "damaged file",
        r"do not match the hashes|hash mismatch",
        "a downloaded file is damaged",
        "Run `pip cache purge`, then run it again.",
    ),
    _rule(
        "missing distribution",
        r"No matching distribution found|Could not find a version|No solution found"
        r"|ResolutionImpossible|not found in the package registry",
        "the package index lacks a required package",
        _INDEX,
    ),
    _rule(
        "no venv",
        r"ensurepip is not available|No module named '?(ensurepip|venv)|ensurepip.*non-zero",
        "this Python cannot create environments",
        "Install its venv package (Debian, Ubuntu: apt install python3-venv), or uv.",
        final=True,
    ),
    _rule(
        "memory",
        r"MemoryError|Cannot allocate memory|os error 12\b",
        "the machine ran out of memory",
        "Free some memory, then run it again.",
        final=True,
    ),
    _rule(
        "permission",
        r"Permission denied|Errno 13\b|Read-only file system|Operation not permitted",
        "a file or folder is not writable",
        "Set EMBERD_ENGINES to a folder that you can write to.",
        final=True,
    ),
)


def diagnose(exit_code: int, output: str) -> Diagnosis:
    """Return why an installer failed.

    Args:
        exit_code: As ``subprocess`` gives it.
        output: What it wrote.
    """
    unknown = Diagnosis(f"the installer ended with code {exit_code}", "Read its log.")
    return log_rules.match(RULES, output) or unknown


def last_lines(output: str, count: int = _TAIL_LINES) -> str:
    """Return the last meaningful lines, joined to one and without passwords."""
    lines = [line for line in output.splitlines() if not _NOISE.search(line)]
    return " / ".join(log_rules.excerpt(line) for line in lines[-count:])

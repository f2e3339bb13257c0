"""``emberd verify`` as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from command import Command

_TIMEOUT_S: Final = 300.0


def run(home: Path, *arguments: str, **more: str) -> tuple[int, Mapping[str, Any]]:
    """Run the command; return its exit code and what it wrote as JSON."""
    command = Command(home, more)
    with command.begin("verify", *arguments, "--json") as process:
        out, err = process.communicate(timeout=_TIMEOUT_S)
    assert out, err.decode()
    return process.returncode, json.loads(out)


def report(found: Mapping[str, Any]) -> tuple[float, float]:
    """Print and return the highest 1 - cosine of a server, and that of bfloat16."""
    (server,) = found["servers"]
    cosines = [each[way] for each in server["texts"] for way in ("alone", "together")]
    error = max(1 - each for each in cosines if each is not None)
    print(
        f"\n{server['server']}: {len(server['texts'])} texts, 1 - cosine at most {error:.2e}; "
        f"transformers in bfloat16 {server['floor']:.2e}, bound {server['bound']:.2e}"
    )
    return error, server["floor"]

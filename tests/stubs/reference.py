"""A stand-in for the program that computes the reference of ``emberd verify``, without torch.

Its vectors are those of ``stub_server.py``. As an interpreter of an engine (``interpreter``), it
says that it has transformers.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

ROUNDING = 1e-3
"""How far a number in "bfloat16" is from that in float32."""


def interpreter(folder: Path) -> Path:
    """Make a program that emberd takes for a Python with transformers; return it."""
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" "$@"\n')
    program.chmod(0o755)
    return program


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the vectors of the texts; a token is a character."""
    from stub_server import vector

    long = ["x" * length for length in asked["lengths"]]
    whole = [*asked["texts"], *(asked["template"].replace("{text}", text) for text in long)]
    if os.environ.get("STUB_REFERENCE") == "other":
        whole = [text.replace("Paris", "Rome") for text in whole]
    exact = [vector(text) if text else None for text in whole]
    rounded = [
        None if row is None else [row[0] + ROUNDING, row[1] - ROUNDING, *row[2:]] for row in exact
    ]
    tokens = [len(text) for text in whole]
    return {
        "long": long,
        "tokens": tokens,
        "float32": exact,
        "bfloat16": rounded,
        "versions": {"transformers": "stub"},
    }


def main() -> None:
    """Answer as the interpreter, or as the program that its arguments name."""
    if "-I" in sys.argv:
        print(json.dumps({"version": "5.0", "packages": os.path.dirname(__file__), "missing": []}))
        return
    sys.path.insert(0, str(Path(__file__).parents[1]))
    asked = json.load(sys.stdin)
    print(json.dumps({"doing": "computing"}), flush=True)
    fault = os.environ.get("STUB_REFERENCE", "")
    if fault == "dies":
        print("the last line of its output", file=sys.stderr)
        sys.exit(3)
    if fault == "killed":
        os.kill(os.getpid(), 9)
    print(json.dumps({"error": "OSError: no such file"} if fault == "error" else answer(asked)))


if __name__ == "__main__":
    main()

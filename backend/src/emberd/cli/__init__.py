"""The command ``emberd``: one function a verb, one module a verb."""

from __future__ import annotations

__all__ = ["main"]


def main() -> int:
    """Run the command with the arguments of this process and return its exit code."""
    # Imported late: whoever imports this package for its exit codes needs no parser.
    from emberd.cli import app

    return app.run()

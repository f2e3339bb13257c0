"""The command ``emberd``: one module per subcommand."""

from __future__ import annotations

__all__ = ["main"]


def main() -> int:
    """Run the command with the arguments of this process and return its exit code."""
    # Imported late: users of the exit codes do not need the parser.
    from emberd.cli import app

    return app.run()

"""Arguments for the engine: what follows the first ``--`` of a command line, and nothing else."""

from __future__ import annotations

from typing import Any, Final

import typer
from typer.core import TyperCommand

MARK: Final = "--"
PARAMETER: Final = "arguments"
"""The parameter of the verb that gets them."""

# Recent versions of typer carry a click of their own, older ones use the package.
_UsageError: Final[Any] = typer.BadParameter.__base__


class WithEngineArguments(TyperCommand):
    """A verb that passes what follows the first ``--`` on to the engine.

    The parser drops the ``--`` itself, and could not tell these arguments from a model.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse what stands before the ``--``; keep the rest as it is.

        Raises:
            UsageError: More than one positional argument stands before it.
        """
        end = args.index(MARK) if MARK in args else len(args)
        rest = super().parse_args(ctx, args[:end])
        if extra := ctx.params.get(PARAMETER):
            raise _UsageError(
                f"Unexpected argument {extra[0]!r}: only one model can be given. Arguments for "
                f"the engine go after {MARK}: {ctx.command_path} MODEL {MARK} --flag value",
                ctx,
            )
        ctx.params[PARAMETER] = args[end + 1 :] or None
        return rest

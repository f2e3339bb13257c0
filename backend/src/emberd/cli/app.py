"""The verbs, and what belongs to none of them."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from emberd.cli import codes, output
from emberd.cli.doctor import doctor
from emberd.cli.embed import embed
from emberd.cli.engine import VERBS as ENGINE_VERBS
from emberd.cli.engine_arguments import WithEngineArguments
from emberd.cli.env import env
from emberd.cli.logs import logs
from emberd.cli.status import status
from emberd.cli.stop import stop
from emberd.cli.up import up

# A mark of the parser's: the paragraph after it keeps its line breaks.
_AS_IT_IS: Final = "\b\n"
_CONTEXT: Final[dict[str, Any]] = {"help_option_names": ["-h", "--help"]}
_EPILOG: Final = f"""{_AS_IT_IS}Exit codes:
{codes.table()}

{_AS_IT_IS}Environment:
  EMBERD_HOME       where the state of servers is kept
  EMBERD_MODEL      the model, where none is named; likewise EMBERD_ENGINE,
                    EMBERD_DEVICE, EMBERD_IDLE_TIMEOUT, EMBERD_START_TIMEOUT, ...
  EMBERD_BASE_URL   a server to use as it is; nothing is ever started then
  EMBERD_API_KEY    its key
  EMBERD_DEBUG=1    errors with their traceback
  NO_COLOR=1        no colours, and nothing bold
"""


def _version(asked: bool) -> None:
    if asked:
        from emberd import __version__

        output.say(f"emberd {__version__}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", help="Print the version.", callback=_version, is_eager=True),
]

# Plain help: rich's costs a tenth of a second, and folds the table of exit codes.
app: Final = typer.Typer(
    name="emberd",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=_CONTEXT,
    epilog=_EPILOG,
)


@app.callback()
def emberd(version: Version = False) -> None:
    """Embeddings that bring their own server.

    Finds a server for an embedding model on this machine, or starts exactly one, and stops it
    when nobody uses it any more.
    """


app.command(cls=WithEngineArguments, context_settings=_CONTEXT)(up)
for verb in (status, stop, logs, env, embed, doctor):
    app.command(context_settings=_CONTEXT)(verb)

_engine: Final = typer.Typer(
    help="Install, list and remove engines.",
    rich_markup_mode=None,
    context_settings=_CONTEXT,
)
for name, function in ENGINE_VERBS.items():
    _engine.command(name, context_settings=_CONTEXT)(function)
app.add_typer(_engine, name="engine")

"""The verbs, and what belongs to none of them."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from contextlib import suppress
from typing import Annotated, Any, Final

import typer

from emberd import env as environment
from emberd.cli import options, output
from emberd.cli.doctor import doctor
from emberd.cli.embed import embed
from emberd.cli.engine import VERBS as ENGINE_VERBS
from emberd.cli.env import FAILED, env
from emberd.cli.logs import logs
from emberd.cli.options import WithEngineArguments
from emberd.cli.output import Code, exit_code
from emberd.cli.status import status
from emberd.cli.stop import stop
from emberd.cli.up import up
from emberd.errors import EmberdError, InstallError, RejectedError, StartError

# A mark of the parser's: the paragraph after it keeps its line breaks.
_AS_IT_IS: Final = "\b\n"
_CONTEXT: Final[dict[str, Any]] = {"help_option_names": ["-h", "--help"]}
_EPILOG: Final = f"""{_AS_IT_IS}Exit codes:
{output.table()}

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


# Recent versions of typer carry a click of their own, older ones use the package: the base
# class of all usage errors is the one that both have in common.
_ParserError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def run(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: What follows the name of the command; None for those of this process.
    """
    given = sys.argv[1:] if arguments is None else arguments
    warnings.showwarning = _warn
    try:
        code = _handled(given)
        if code != Code.OK and _is_for_eval(given):
            output.say(FAILED)
        sys.stdout.flush()
    except OSError:
        # Whoever reads it has left, or it leads to a full disk.
        code = _nowhere_to_write()
    return int(code)


def _handled(arguments: list[str]) -> int:
    try:
        return _run(arguments)
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, people get words and a code
        return _fail(error, as_json=_wants_json(arguments))


def _run(arguments: list[str]) -> int:
    try:
        outcome = app(args=arguments or ["--help"], prog_name="emberd", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        outcome = Code.INTERRUPTED
    if outcome == Code.INTERRUPTED:
        output.note("interrupted")
    return outcome if isinstance(outcome, int) else Code.OK


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    # Which line of which file warns is of no use to whoever typed a command.
    output.note(f"warning: {options.spelt(str(message))}")


def _fail(error: Exception, *, as_json: bool) -> int:
    if environment.text("EMBERD_DEBUG"):
        traceback.print_exception(error)
    code = Code.USAGE if isinstance(error, _ParserError) else exit_code(error)
    kind = "UsageError" if isinstance(error, _ParserError) else type(error).__name__
    if as_json:
        content = {"kind": kind, "message": _told(error), "exit_code": int(code)}
        output.dump({"error": content})
    output.note(f"error: {_told(error)}")
    return code


def _told(error: Exception) -> str:
    if isinstance(error, _ParserError):
        return _usage(error)
    if isinstance(error, StartError | RejectedError | InstallError):
        return str(error)  # it quotes a server or an installer, whose words are not ours to change
    if isinstance(error, EmberdError):
        return options.spelt("\n".join([str(error), *getattr(error, "__notes__", ())]))
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{error.strerror}"
    return f"unexpected {error!r}. This is a bug of emberd: EMBERD_DEBUG=1 shows where."


def _usage(error: Any) -> str:
    context = getattr(error, "ctx", None)
    hint = f" Try: {context.command_path} --help" if context is not None else ""
    message = error.format_message().rstrip(".")
    # Typer's own validation leaves the value out, and has it in the cause.
    if details := getattr(error.__cause__, "errors", None):
        value = details()[0].get("input")
        message = message.replace("Invalid value", f"Invalid value {value!r}", 1)
    return f"{message}.{hint}"


def _wants_json(arguments: list[str]) -> bool:
    # Looked for by hand: a usage error comes before the options were understood.
    return "--json" in arguments[: arguments.index("--") if "--" in arguments else None]


def _is_for_eval(arguments: list[str]) -> bool:
    verb = next((word for word in arguments if not word.startswith("-")), None)
    return verb == "env" and not _wants_json(arguments)


def _nowhere_to_write() -> int:
    # What is still in the buffer would raise once more when Python ends.
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return Code.ERROR

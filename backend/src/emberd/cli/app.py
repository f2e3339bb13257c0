"""The command line application: subcommands, error messages and exit codes."""

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
from emberd.cli.bench import bench
from emberd.cli.doctor import doctor
from emberd.cli.embed import embed
from emberd.cli.engine import VERBS as ENGINE_VERBS
from emberd.cli.logs import logs
from emberd.cli.options import EngineArgumentsCommand
from emberd.cli.output import ExitCode, exit_code
from emberd.cli.pull import pull
from emberd.cli.reindex import reindex
from emberd.cli.search import search
from emberd.cli.serve import serve
from emberd.cli.server_history import history
from emberd.cli.status import status
from emberd.cli.stop import stop
from emberd.cli.up import FAILED, env, up
from emberd.cli.verify_server import verify
from emberd.errors import EmberdError
from emberd.system import os_errors

_CONTEXT: Final[dict[str, Any]] = {"help_option_names": ["-h", "--help"]}
# \b tells the parser that the paragraph after it keeps its line breaks.
_EPILOG: Final = f"""\b
Exit codes:
{output.exit_code_table()}

\b
Environment:
  EMBERD_HOME       folder of the servers' state
  EMBERD_MODEL      default for --model; likewise EMBERD_ENGINE,
                    EMBERD_DEVICE, EMBERD_IDLE_TIMEOUT, EMBERD_START_TIMEOUT, ...
  EMBERD_BASE_URL   use this server; none is started
  EMBERD_API_KEY    its key
                    For a reranker: EMBERD_RERANK_MODEL, ..._BASE_URL, ..._API_KEY
  EMBERD_DEBUG=1    print tracebacks of errors
  NO_COLOR=1        no colours and no bold text
"""


def _version(asked: bool) -> None:
    if asked:
        from emberd import __version__

        output.write_line(f"emberd {__version__}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("-V", "--version", help="Print the version.", callback=_version, is_eager=True),
]

# Plain help: rich costs 0.1 s and wraps the table of exit codes.
app: Final = typer.Typer(
    name="emberd",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=_CONTEXT,
    epilog=_EPILOG,
)


@app.callback()
def emberd(version: Version = False) -> None:
    """Embeddings that bring their own server.

    Finds a server for an embedding model on this machine, or starts exactly one, and stops it
    when it is idle.
    """


app.command(cls=EngineArgumentsCommand, context_settings=_CONTEXT)(up)
for verb in (
    *(serve, pull, status, stop, logs, history, env, embed, search),
    *(reindex, verify, bench, doctor),
):
    app.command(context_settings=_CONTEXT)(verb)
app.command("ps", context_settings=_CONTEXT, short_help="Same as `status`.")(status)

_engine: Final = typer.Typer(
    help="Install, list and remove engines.",
    rich_markup_mode=None,
    context_settings=_CONTEXT,
)
for name, function in ENGINE_VERBS.items():
    _engine.command(name, context_settings=_CONTEXT)(function)
app.add_typer(_engine, name="engine")


# Recent versions of typer contain their own click, older ones use the package: the base
# class of all usage errors is the one that both have in common.
_ParserError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def run(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: Arguments without the name of the command; None for those of this process.
    """
    given = sys.argv[1:] if arguments is None else arguments
    # Not from the parsed options: a usage error occurs before they are available.
    as_json = "--json" in given[: given.index("--") if "--" in given else None]
    _prepare_streams()
    output.restore_cursor_on_termination()
    warnings.showwarning = _warn
    try:
        code = _run(given, as_json=as_json)
        verb = next((word for word in given if not word.startswith("-")), None)
        if code != ExitCode.OK and verb == "env" and not as_json:
            output.write_line(FAILED)
        sys.stdout.flush()
    except OSError:
        # The output pipe was closed, or the disk is full. The rest of the buffer would raise again
        # when Python exits.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = ExitCode.ERROR
    return int(code)


def _prepare_streams() -> None:
    """Make writing possible if a stream is closed, or if its encoding lacks a character."""
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - open until the end
        elif getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _run(arguments: list[str], *, as_json: bool) -> int:
    try:
        outcome = app(args=arguments or ["--help"], prog_name="emberd", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        outcome = ExitCode.INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - every error becomes a message and an exit code
        return _fail(error, as_json=as_json)
    if outcome == ExitCode.INTERRUPTED:
        output.note("interrupted")
    return outcome if isinstance(outcome, int) else ExitCode.OK


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    # Without the file and line of the warning, which do not help the user of a command.
    output.note(f"warning: {options.to_cli_names(str(message))}")


def _fail(error: Exception, *, as_json: bool) -> int:
    if environment.text("EMBERD_DEBUG"):
        traceback.print_exception(error)
    kind, code, message = type(error).__name__, exit_code(error), _message(error)
    if isinstance(error, _ParserError):
        kind, code = "UsageError", ExitCode.USAGE
    if as_json:
        content = {"kind": kind, "message": message, "exit_code": int(code)}
        output.write_json({"error": content})
    output.note(f"error: {message}")
    return code


_CODEC: Final = (UnicodeDecodeError, UnicodeEncodeError)


def _message(error: Exception) -> str:
    if isinstance(error, _ParserError):
        return _usage(error)
    if isinstance(error, EmberdError):
        text = "\n".join([str(error), *getattr(error, "__notes__", ())])
        return text if isinstance(error, options.QUOTING) else options.to_cli_names(text)
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{error.strerror}. {os_errors.advice(error)}".rstrip(" ")
    # The whole text that cannot be decoded is part of the error, and it may be a secret.
    shown = f"{type(error).__name__}({error.reason})" if isinstance(error, _CODEC) else repr(error)
    return f"unexpected {shown}. This is a bug in emberd: EMBERD_DEBUG=1 prints the traceback."


def _usage(error: Any) -> str:
    context = getattr(error, "ctx", None)
    hint = f" Try: {context.command_path} --help" if context is not None else ""
    message = error.format_message().rstrip(".")
    if not message.endswith("?"):  # as in: Did you mean 'status'?
        message += "."
    # Typer's own validation has the value only in the cause.
    if details := getattr(error.__cause__, "errors", None):
        value = details()[0].get("input")
        message = message.replace("Invalid value", f"Invalid value {value!r}", 1)
    return f"{message}{hint}"

"""Options shared by several subcommands, and their validation."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand

from emberd import env, model_files
from emberd.catalog import EMBED
from emberd.cli import output
from emberd.errors import SettingError
from emberd.settings import (
    DEFAULT_MODEL,
    IDLE_TIMEOUT_S,
    START_TIMEOUT_S,
    ServerSpec,
    Settings,
)

# Errors name Python arguments. Replaced in this order: phrases, arguments that are variables here,
# arguments that are options. After a slash or a question mark the name is part of a path or a URL.
_PHRASES: Final = {
    "Give api_key=, or set EMBERD_": "Set EMBERD_",
    "Give base_url= or EMBERD_BASE_URL": "Give EMBERD_BASE_URL",
    "lower max_concurrency": "lower EMBERD_MAX_CONCURRENCY",
    "truncate=True": "--truncate",
    "tp_size and dp_size": "--tp-size and --dp-size",
}
_VARIABLE: Final = re.compile(
    r"(?<![-\w/?&])(api_key|base_url|timeout|batch_size|max_concurrency"
    r"|query_instruction|document_instruction)=(['\"\w-]?)"
)
_OPTION: Final = re.compile(
    r"(?<![-\w/?&])(model|revision|quantization|engine|device|context_tokens|dimensions|idle_timeout"
    r"|start_timeout|save_every|duration|tp_size|dp_size|pooling)=(?=['\"\w-])"
)

ModelName = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="Same as --model."),
]

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help=f"Name on the hub, or a folder. Default: EMBERD_MODEL, else {DEFAULT_MODEL}.",
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="Use only this engine: sglang, transformers, demo, or the dotted name of a module.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="cuda, mps or cpu."),
]
ContextTokens = Annotated[
    int | None,
    typer.Option(
        "--context-tokens",
        metavar="NUMBER",
        help="Longest text in tokens; a started server reserves memory for this length.",
    ),
]
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic", help="A text gets the same vector, to the bit, in any batch; slower."
    ),
]
Revision = Annotated[
    str | None,
    typer.Option("--revision", metavar="COMMIT", help="Commit of the model on the hub."),
]
Quantization = Annotated[
    str | None,
    typer.Option(
        "--quantization",
        metavar="NAME",
        help="fp8: weights of eight bits. Half the memory for weights, but other vectors; not yet "
        "tried on a GPU.",
    ),
]
IdleTimeout = Annotated[
    str | None,
    typer.Option(
        "--idle-timeout",
        metavar="DURATION|never",
        help="Stop the server after this time without use: 900, 90s, 5m, 1h30m, 2d. "
        f"Default: {output.duration(IDLE_TIMEOUT_S)}.",
    ),
]
StartTimeout = Annotated[
    str | None,
    typer.Option(
        "--start-timeout",
        metavar="DURATION",
        help="How long to wait for a server to start: 900, 90s, 5m. It continues to start after "
        f"this time. Default: {output.duration(START_TIMEOUT_S)}.",
    ),
]
Port = Annotated[
    int | None,
    typer.Option(
        "--port",
        metavar="NUMBER",
        help="Loopback port of the server. Default: EMBERD_PORT, or EMBERD_RERANK_PORT "
        "for a reranker, else any free port.",
    ),
]
NoAuth = Annotated[
    bool,
    typer.Option(
        "--no-auth",
        help="Require no key: every user and web page on this machine can use the server.",
    ),
]
TpSize = Annotated[
    int | None,
    typer.Option(
        "--tp-size",
        metavar="NUMBER",
        help="Number of GPUs to split the model across. Default: EMBERD_TP_SIZE, else 1.",
    ),
]
DpSize = Annotated[
    int | None,
    typer.Option(
        "--dp-size",
        metavar="NUMBER",
        help="Number of model replicas, each on its own GPUs. Default: EMBERD_DP_SIZE, else 1.",
    ),
]
Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="-- ARGUMENT",
        help="Arguments for the engine, after those of emberd. Default: EMBERD_ENGINE_ARGS.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print the engine's command and the reason for each argument; start nothing.",
    ),
]
Yes = Annotated[
    bool,
    typer.Option("--yes", "-y", help="Download a missing engine and weights without asking."),
]
Estimate = Annotated[
    bool,
    typer.Option(
        "--estimate",
        help="Print the GPU memory that a server would take, also without a GPU; start nothing.",
    ),
]
Memory = Annotated[
    list[str] | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="With --estimate: size of the GPU, as 24GB. Can be repeated. Default: usual sizes.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON.")]


def settings(*, embeds: bool = True, **given: Any) -> Settings:
    """Return the settings from the command line, else from the environment.

    Args:
        embeds: Whether texts are embedded. A subcommand that only starts a server needs no
            prompts, so a model without known prompts is accepted.
        **given: Fields of ``Settings`` as typed; None for an option that was left out.

    Raises:
        SettingError: A value cannot be used, or says which server to start although one is given
            by a variable; it is named.
    """
    given = {name: value for name, value in given.items() if value is not None}
    bare = {} if embeds else {"query_instruction": "", "document_instruction": ""}
    kind = Settings
    if not embeds:
        from emberd.doctor.wanted import kind_of  # late, to keep the other subcommands fast

        kind = kind_of(given)
    resolved = kind.resolve(**bare, **given)
    chosen: dict[str, Any] = {
        name: given[name] for name in ("engine", "device", "context_tokens") if name in given
    }
    validate_with_base_url(resolved.base_url, chosen, resolved.task)
    return resolved


def validate_with_base_url(
    base_url: str | None, given: Mapping[str, Any], task: str = EMBED
) -> None:
    """Raise if a server is given by URL together with options that choose or start one.

    Args:
        base_url: The given server; None if one may be started.
        given: Command-line options by field of ``Settings`` or ``StartOptions``.
        task: What the model is used for.

    Raises:
        SettingError: Both are given; the message names the options.
    """
    if base_url is not None and given:
        variable = env.setting_variable("base_url", task)
        raise SettingError(
            f"{as_typed(given)} cannot be given: {variable} is set to {base_url}, so no "
            f"server is started. Omit the options, or unset {variable}."
        )


def command_line(verb: str, spec: ServerSpec) -> str:
    """Return the command line of ``emberd pull``, ``up`` or ``env`` for ``spec``."""
    given = {
        "engine": spec.engine,
        "device": spec.device,
        "revision": spec.revision,
        # The same weights are downloaded.
        "quantization": spec.quantization if verb != "pull" else None,
    }
    model = [] if spec.model == DEFAULT_MODEL else [shlex.quote(spec.model)]
    flags = [f"--{name} {shlex.quote(value)}" for name, value in given.items() if value is not None]
    return " ".join(["emberd", verb, *model, *flags])


def as_typed(options: Mapping[str, Any]) -> str:
    """Return options as they are written on the command line, without secrets."""
    return ", ".join(_option(name, value) for name, value in options.items())


def _option(name: str, value: Any) -> str:
    if name == "arguments":
        # Imported late: only an error needs it.
        from emberd.system.redaction import redactor, secrets
        from emberd.system.redaction import words as without_secrets

        shown = without_secrets(value, redactor(more=secrets(value)))
        return f"-- {shlex.join(shown)}"
    option = f"--{name.replace('_', '-')}"
    return option if value is True else f"{option} {value}"


def resolve_model(positional: str | None, option: str | None) -> str | None:
    """Return the model given as an argument, as ``--model``, or as both.

    Returns:
        The name, or the real path of a folder; None if neither is given.

    Raises:
        SettingError: The two differ, or one cannot be the name of a model.
    """
    names = [model_files.absolute(name) for name in (positional, option) if name is not None]
    if len(set(names)) > 1:
        raise SettingError(
            f"Two models are given: {positional!r} and --model {option!r}. Give only one."
        )
    name = names[0] if names else None
    if name is not None and not name.strip():
        raise SettingError("The name of the model is blank. Give one, or omit it.")
    if name is not None and name.startswith("-"):
        raise SettingError(
            f"{name!r} is not the name of a model. If it is an argument for the engine, use "
            f"`emberd up MODEL -- {name}`."
        )
    return name


def to_cli_names(text: str) -> str:
    """Replace Python arguments in an error message by options and variables."""
    for python, command in _PHRASES.items():
        text = text.replace(python, command)
    text = _VARIABLE.sub(
        lambda found: f"EMBERD_{found[1].upper()}" + (f"={found[2]}" if found[2] else ""), text
    )
    return _OPTION.sub(lambda found: f"--{found[1].replace('_', '-')} ", text)


# Recent versions of typer contain their own click, older ones use the package.
_UsageError: Final[Any] = typer.BadParameter.__base__


class EngineArgumentsCommand(TyperCommand):
    """A subcommand that passes the arguments after the first ``--`` to the engine.

    The parser itself drops the ``--`` and could not distinguish these arguments from a model.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments before the ``--`` and keep the rest unchanged.

        Raises:
            UsageError: There is more than one positional argument before it.
        """
        end = args.index("--") if "--" in args else len(args)
        rest = super().parse_args(ctx, args[:end])
        if extra := ctx.params.get("arguments"):
            raise _UsageError(
                f"Unexpected argument {extra[0]!r}: only one model can be given. Arguments for "
                f"the engine go after --: {ctx.command_path} MODEL -- --flag value",
                ctx,
            )
        ctx.params["arguments"] = args[end + 1 :] or None
        return rest

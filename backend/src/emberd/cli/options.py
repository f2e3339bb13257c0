"""Options shared by several subcommands, and their validation."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand

from emberd import catalog, env, model_files
from emberd.catalog import EMBED, RERANK
from emberd.cli import output
from emberd.errors import (
    EmberdError,
    InstallError,
    InstructionError,
    RejectedError,
    SettingError,
    StartError,
)
from emberd.model_card import may_rerank
from emberd.settings import (
    DEFAULT_MODEL,
    DEFAULT_RERANKER,
    IDLE_TIMEOUT_S,
    START_TIMEOUT_S,
    ServerSpec,
    Settings,
    kind_of,
)

_IF_RERANKER: Final = "If it is a reranker, use emberd.Reranker to score documents with it."

# Errors name Python arguments. Replaced in this order: phrases, arguments that are variables here,
# arguments that are options. After a slash or a question mark the name is part of a path or a URL.
_PHRASES: Final = {
    "Give api_key=, or set EMBERD_": "Set EMBERD_",
    "Give base_url= or EMBERD_": "Give EMBERD_",
    "lower max_concurrency": "lower EMBERD_MAX_CONCURRENCY",
    "truncate=True": "--truncate",
    "tp_size and dp_size": "--tp-size and --dp-size",
}
_VARIABLE: Final = re.compile(
    r"(?<![-\w/?&])(api_key|base_url|timeout|batch_size|max_concurrency"
    r"|query_instruction|document_instruction)=(['\"\w-]?)"
)
_TO_CORRECT: Final = re.compile(r"\b([Cc]orrect|omit) base_url\b")
_OPTION: Final = re.compile(
    r"(?<![-\w/?&])(model|revision|quantization|engine|device|context_tokens|dimensions|idle_timeout"
    r"|start_timeout|interval|task|save_every|duration|tp_size|dp_size|pooling)=(?=['\"\w-])"
)


def complete_model(incomplete: str) -> list[str]:
    """Return the known models whose names begin so, for the shell's completion."""
    return [each.name for each in catalog.MODELS if each.name.startswith(incomplete)]


ModelName = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="Same as --model.", autocompletion=complete_model),
]
ModelNames = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL",
        autocompletion=complete_model,
        help="Same as --model. Several models, such as an embedding model and a reranker, are "
        "planned so that they fit on one GPU. Arguments for the engine go after --, after those of "
        "emberd; default: EMBERD_ENGINE_ARGS.",
    ),
]

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        autocompletion=complete_model,
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
        "--deterministic",
        help="A text gets the same vector or score, to the bit, in any batch; slower.",
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
        help="fp8: weights of eight bits. Half the memory for weights, but other results; not yet "
        "tried on a GPU.",
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="NAME",
        help="embed, or rerank for a server of a reranker. Default: what the model's files say, "
        "else embed. With rerank, the default model is EMBERD_RERANK_MODEL, else "
        f"{DEFAULT_RERANKER}.",
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


def settings(
    *, embeds: bool = True, task: str | None = None, fetches: bool = False, **given: Any
) -> Settings:
    """Return the settings from the command line, else from the environment.

    Args:
        embeds: Whether texts are embedded. A subcommand that only starts a server needs no
            prompts, so a model without known prompts is accepted, and so is a reranker.
        task: What the model is used for, as typed; None for what it is.
        fetches: Whether files of a model on the hub may be fetched that say what it is.
        **given: Fields of ``Settings`` as typed; None for an option that was left out.

    Raises:
        SettingError: A value cannot be used, or says which server to start although one is given
            by a variable; it is named.
    """
    given = {name: value for name, value in given.items() if value is not None}
    bare = {} if embeds else {"query_instruction": "", "document_instruction": ""}

    def resolve() -> Settings:
        model, revision = given.get("model"), given.get("revision")
        kind = Settings if embeds else kind_of(model, revision, task)
        try:
            with errors_for(kind.task):
                return kind.resolve(**bare, **given)
        except InstructionError as error:
            if model is not None and may_rerank(model, revision):
                error.add_note(_IF_RERANKER)
            raise

    resolved = resolve()
    if fetches and not resolved.is_described:
        resolved.fetch_card()
        resolved = resolve()
    chosen: dict[str, Any] = {
        name: given[name] for name in ("engine", "device", "context_tokens") if name in given
    }
    validate_with_base_url(resolved.base_url, chosen, resolved.task)
    return resolved


def check_embeds(model: str | None, revision: str | None, instead: str) -> None:
    """Raise if a named model is a reranker.

    Args:
        model: The model, as typed; None if none is named.
        revision: Commit, branch or tag on the hub.
        instead: What to do instead, in one or more sentences, with ``{model}``.

    Raises:
        SettingError: It is.
    """
    if model is not None and kind_of(model, revision).task == RERANK:
        raise SettingError(f"{model} is a reranker. {instead.format(model=shlex.quote(model))}")


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
    if spec.task != kind_of(spec.model, spec.revision).task:
        given["task"] = spec.task
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


def resolve_models(positional: Sequence[str] | None, option: str | None) -> list[str | None]:
    """Return the models given as arguments or as ``--model``; [None] if none is given.

    Raises:
        SettingError: As for ``resolve_model``, or a model is given twice.
    """
    if not positional or len(positional) == 1:
        return [resolve_model(positional[0] if positional else None, option)]
    if option is not None:
        raise SettingError(
            f"Several models are given, and --model {option!r}. Give all of them as arguments."
        )
    names = [resolve_model(name, None) for name in positional]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise SettingError(f"The model {twice!r} is given twice. Give it once.")
    return names


def to_cli_names(text: str, task: str = EMBED) -> str:
    """Replace Python arguments in an error message by options and variables.

    Args:
        text: The message.
        task: What the model is used for: a reranker has separate variables.
    """
    for python, command in _PHRASES.items():
        text = text.replace(python, command)
    base_url = env.setting_variable("base_url", task)
    text = _TO_CORRECT.sub(lambda found: f"{found[1]} {base_url}", text)
    text = _VARIABLE.sub(
        lambda found: (
            env.named_for(task, f"EMBERD_{found[1].upper()}") + (f"={found[2]}" if found[2] else "")
        ),
        text,
    )
    return _OPTION.sub(lambda found: f"--{found[1].replace('_', '-')} ", text)


QUOTING: Final = (StartError, RejectedError, InstallError)
"""Errors that quote a server or an installer, whose output is not changed."""


@contextmanager
def errors_for(task: str) -> Iterator[None]:
    """Replace Python arguments in the errors of the block; see ``to_cli_names``.

    Args:
        task: What the model is used for.

    Raises:
        EmberdError: What the block raised.
    """
    try:
        with env.errors_for(task):
            yield
    except EmberdError as error:
        if not isinstance(error, QUOTING):
            error.args = (to_cli_names(str(error), task), *error.args[1:])
        raise


_AFTER_DASHES: Final = "emberd.after_dashes"


def engine_arguments(context: typer.Context) -> tuple[str, ...] | None:
    """Return the arguments for the engine of an ``EngineArgumentsCommand``; None if none."""
    return context.meta.get(_AFTER_DASHES)


class EngineArgumentsCommand(TyperCommand):
    """A subcommand that passes the arguments after the first ``--`` to the engine.

    The parser itself drops the ``--`` and could not distinguish these arguments from a model.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments before the ``--`` and keep the rest unchanged."""
        end = args.index("--") if "--" in args else len(args)
        ctx.meta[_AFTER_DASHES] = tuple(args[end + 1 :]) or None
        return super().parse_args(ctx, args[:end])

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line."""
        return [*super().collect_usage_pieces(ctx), "[-- ARGUMENT...]"]

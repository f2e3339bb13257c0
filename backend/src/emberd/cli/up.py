"""``emberd up`` and ``emberd env``: find or start a server, or show how one would be started."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import typer

from emberd import engines
from emberd import env as environment
from emberd.catalog import DEFAULT_MODELS, DEMO_MODEL, EMBED, RERANK
from emberd.cli import downloads, options, output
from emberd.cli.options import errors_for
from emberd.engines.base import (
    DRY_RUN_FOLDER,
    DRY_RUN_KEY,
    DRY_RUN_PORT,
    dry_run,
    phase_of,
)
from emberd.env import Places
from emberd.errors import EmberdError, NoEngineError, SettingError
from emberd.manager import Server
from emberd.model_card import may_rerank
from emberd.settings import ServerSpec, Settings, StartOptions
from emberd.verified_manager import Manager

if TYPE_CHECKING:
    from emberd.cli.downloads import Item
    from emberd.manager import Check, PendingStart, Progress, ServerStatus

FAILED: Final = "unset OPENAI_BASE_URL OPENAI_API_KEY; false"
"""What ``emberd env`` prints if there is no server. ``eval`` of an empty output would succeed, and
clients would use the previous values."""

# The SDK requires a key; servers without one accept any.
_NO_KEY: Final = "EMPTY"

_NOT_QWEN: Final = (
    "The vectors of emberd/demo are those of multilingual-e5-small: they are NOT Qwen3 vectors. "
    "An index of them cannot be used with another model."
)

_OPEN: Final = (
    "It requires no key: every user of this machine, and every web page in a browser on it, can "
    "use it, read its metrics and fill its queue. It listens only on loopback; never forward the "
    "port."
)

_UNSAID: Final = (
    "The files of {model} do not say whether it embeds texts or scores documents: this server "
    "embeds. If it is a reranker: {command}"
)

_KEY_OF_GIVEN: Final = (
    "  Set {variable} for each of them: emberd does not store the key of a given server."
)


def up(
    context: typer.Context,
    names: options.ModelNames = None,
    model: options.Model = None,
    task: options.Task = None,
    engine: options.Engine = None,
    device: options.Device = None,
    context_tokens: options.ContextTokens = None,
    deterministic: options.Deterministic = False,
    revision: options.Revision = None,
    quantization: options.Quantization = None,
    idle_timeout: options.IdleTimeout = None,
    start_timeout: options.StartTimeout = None,
    port: options.Port = None,
    no_auth: options.NoAuth = False,
    tp_size: options.TpSize = None,
    dp_size: options.DpSize = None,
    yes: options.Yes = False,
    dry_run: options.DryRun = False,
    estimate: options.Estimate = False,
    memory: options.Memory = None,
    as_json: options.AsJson = False,
) -> None:
    """Find or start a server and wait for it.

    Uses a running server of the model, including an external one, or joins a start in progress. An
    option that applies to the start of a server is an error if the running server was started
    with other options. If the last start failed, another one is tried; the Python classes instead
    raise the error of a start that failed recently.

    A reranker gets a server for scores. Whether a model is one is read from its files, which are
    fetched if necessary; --task says it where they do not.

    With several models, their servers are started one after another, and each leaves memory of the
    GPU for those that follow. If one fails, the command ends; servers that are ready continue to
    run, and the others are not started.

    If an engine or weights are missing, shows what would be downloaded, and asks. Without a
    terminal that is an error, unless --yes is given or EMBERD_AUTO_INSTALL is set.

    Arguments for the engine go after --, for example: emberd up MODEL -- --flag value

    Prints the server, why it was chosen, and how to use it.
    """
    models = options.resolve_models(names, model)
    values: dict[str, Any] = {
        "port": port,
        "no_auth": no_auth or None,
        "tp_size": tp_size,
        "dp_size": dp_size,
        "arguments": options.engine_arguments(context),
    }
    given = {name: value for name, value in values.items() if value is not None}
    _validate_for_several(models, port=port, revision=revision, task=task)
    wishes = [
        options.settings(
            model=each,
            engine=engine,
            device=device,
            context_tokens=context_tokens,
            deterministic=deterministic or None,
            revision=revision,
            quantization=quantization,
            idle_timeout=idle_timeout,
            start_timeout=start_timeout,
            embeds=False,
            task=task,
            fetches=not (dry_run or estimate),
        )
        for each in models
    ]
    starts = list(_starts(wishes, given))
    if memory and not estimate:
        raise SettingError("--memory is for --estimate. Add --estimate, or omit it.")
    if estimate:
        from emberd.cli.estimate import show  # late, to keep the other subcommands fast

        with options.errors_for(wishes[0].task):
            show([(each.spec, wanted) for each, wanted in starts], memory, as_json=as_json)
        return
    if dry_run:
        show_dry_run([(each.spec, wanted) for each, wanted in starts], as_json=as_json)
        return
    if len(starts) > 1:
        _validate_engines([each.spec for each in wishes if each.base_url is None])
    contents = []
    for number, (settings, wanted) in enumerate(starts):
        try:
            check = partial(_validate_running, given=given, model=settings.model)
            server = ensure(
                settings, retry_failed=True, options=wanted, check=check, assume_yes=yes
            )
        except EmberdError as error:
            if len(starts) > 1:
                error.add_note(_outcome_of_several([each.model for each in wishes], number))
            raise
        server = server.noting_unmet(overridden=[*given, *(["share_gpu"] if wishes[1:] else [])])
        notes = [*server.notes, *_notes(server, settings, idle_timeout)]
        if task is None and settings.task == EMBED and may_rerank(settings.model, revision):
            notes.append(_UNSAID.format(model=settings.model, command=_as_reranker(settings.spec)))
        server = replace(server, notes=tuple(notes))
        contents.append(_as_content(server))
        if not as_json:
            for line in ([""] if number else []) + _lines(server, settings.spec):
                output.write_line(line)
    if as_json:
        output.write_json({"servers": contents} if len(starts) > 1 else contents[0])


def _validate_for_several(models: Sequence[str | None], **of_one: object) -> None:
    """Raise if several models are given together with options that can be those of one only.

    Raises:
        SettingError: They are; the message names the options.
    """
    given = {name: value for name, value in of_one.items() if value is not None}
    if len(models) > 1 and given:
        raise SettingError(
            f"{options.as_typed(given)} cannot apply to several models. Omit it, or run `emberd "
            f"up` for each model."
        )


def _validate_engines(specs: Sequence[ServerSpec]) -> None:
    """Raise if no engine can serve one of several models, before minutes pass for another one.

    Raises:
        NoEngineError: None can, and no server of the model is running.
    """
    for spec in specs:
        choice = engines.explain(spec)
        if not (choice.engine or choice.installable) and Manager().find(spec) is None:
            try:
                engines.choose(spec)
            except NoEngineError as error:
                error.add_note("No server was started.")
                raise


def _starts(
    wishes: Sequence[Settings], given: Mapping[str, Any]
) -> Iterator[tuple[Settings, StartOptions]]:
    """Yield the settings of each server with the options of its start.

    Raises:
        SettingError: A value cannot be used, or an option starts a server that is given by URL.
    """
    for settings in wishes:
        options.validate_with_base_url(settings.base_url, given, settings.task)
        # The servers of one command share a GPU, except for those that it does not start.
        shared = [each.model for each in wishes if each.base_url is None]
        sharing = {"share_gpu": tuple(shared)} if len(wishes) > 1 else {}
        yield settings, StartOptions.resolve(task=settings.task, **{**given, **sharing})


def _outcome_of_several(models: Sequence[str], failed: int) -> str:
    """Return which of several servers failed, which run, and which were not started.

    Args:
        models: The models in the order of their starts.
        failed: The position of the one that failed.
    """
    ready, rest = models[:failed], models[failed + 1 :]
    parts = [f"This is the error of {models[failed]}."]
    if ready:
        stop = " and ".join(f"`emberd stop {shlex.quote(name)}`" for name in ready)
        runs, it = ("runs", "it") if len(ready) == 1 else ("run", "them")
        parts.append(f"{' and '.join(ready)} {runs}; {stop} stops {it}.")
    if rest:
        parts.append(f"{' and '.join(rest)} {'was' if len(rest) == 1 else 'were'} not started.")
    return " ".join(parts)


def env(
    name: options.ModelName = None,
    model: options.Model = None,
    engine: options.Engine = None,
    device: options.Device = None,
    revision: options.Revision = None,
    quantization: options.Quantization = None,
    idle_timeout: options.IdleTimeout = None,
    start_timeout: options.StartTimeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Print shell lines for OpenAI clients of an embedding server.

    Use it as:  eval "$(emberd env)"

    Finds or starts the server first; returns at once if it is running. The port and the key
    change when the server is restarted: repeat the command then.

    If it fails, the eval fails too: the printed line unsets both variables and ends with false.

    This is the only subcommand that prints the server's key. OpenAI clients send texts unchanged,
    so the client must add the instruction that queries need.
    """
    settings = options.settings(
        model=options.resolve_model(name, model),
        engine=engine,
        device=device,
        revision=revision,
        quantization=quantization,
        idle_timeout=idle_timeout,
        start_timeout=start_timeout,
        embeds=False,
        fetches=True,
    )
    if settings.task == RERANK:
        raise SettingError(
            f"{settings.model} is a reranker, and OpenAI clients cannot request scores. Use "
            f"emberd.Reranker, which finds its server by itself."
        )
    server = ensure(settings)
    for note in (*server.notes, *_notes(server, settings, idle_timeout)):
        output.note(f"note: {note}")
    variables = {
        "OPENAI_BASE_URL": server.endpoint.base_url,
        "OPENAI_API_KEY": server.endpoint.api_key or _NO_KEY,
    }
    if as_json:
        output.write_json(variables)
    else:
        for variable, value in variables.items():
            output.write_line(f"export {variable}={shlex.quote(value)}")


def ensure(
    settings: Settings,
    *,
    retry_failed: bool = False,
    options: StartOptions | None = None,
    check: Check | None = None,
    assume_yes: bool | None = None,
) -> Server:
    """Return a server for ``settings``, found or started, and show progress on stderr.

    Args:
        settings: The settings.
        retry_failed: See ``Manager.ensure``.
        options: See ``Manager.ensure``.
        check: See ``Manager.ensure``.
        assume_yes: Whether a missing engine and weights are downloaded without asking; None to
            leave that to ``Manager.ensure``.

    Raises:
        EmberdError: What ``Manager.ensure`` or ``check`` raises.
    """
    line = output.ProgressLine()

    def show(progress: Progress) -> None:
        doing, took = progress.text or "starting", output.duration(progress.seconds)
        if progress.phase_seconds is not None:
            took = f"{output.duration(progress.phase_seconds)}; {took} in all"
        line.show(f"{settings.model}: {doing} ({took})", topic=phase_of(doing.partition(":")[0]))

    def find_missing(spec: ServerSpec) -> Callable[[Callable[[str], None]], None] | None:
        found = downloads.find(spec, options or StartOptions.resolve(task=spec.task))
        if found is None:
            return None

        def obtain(report: Callable[[str], None]) -> None:
            line.clear()  # the question takes its place
            found.obtain(report, assume_yes=assume_yes or Places.resolve().auto_install)

        return obtain

    try:
        with line, errors_for(settings.task):
            settings.fetch_card()  # Engines check the card's pooling before a start.
            settings.check_task()
            return Manager().ensure(
                settings.spec,
                base_url=settings.base_url,
                api_key=settings.api_key,
                start_timeout=settings.start_timeout,
                idle_timeout=settings.idle_timeout,
                retry_failed=retry_failed,
                options=options,
                check=check,
                missing=None if assume_yes is None else find_missing,
                on_progress=show,
            )
    except KeyboardInterrupt:
        # Also before the first progress: a start may already be running.
        output.note("A running start continues: `emberd status` shows it, `emberd stop` stops it.")
        raise


def _as_reranker(spec: ServerSpec) -> str:
    return options.command_line("up", replace(spec, task=RERANK))


def _as_content(server: Server) -> dict[str, Any]:
    """Return the JSON form of a server, without its key."""
    of_endpoint = ("url", "base_url", "model", "dimensions", "context_tokens")
    of_server = ("origin", "reason", "started", "engine", "start_id", "folder")
    return {
        "task": server.endpoint.task,
        **{name: getattr(server.endpoint, name) for name in of_endpoint},
        # A score is a row of one number, which is no length of a vector.
        **({"dimensions": None} if server.endpoint.task == RERANK else {}),
        **{name: getattr(server, name) for name in of_server},
        "notes": list(server.notes),
        "phases": dict(server.phases),
    }


def _lifetime(server: Server) -> str:
    """Return in one sentence when a server stops."""
    if server.origin != "own":
        return "emberd did not start it and will not stop it."
    status = _status_of(server)
    if status is None or status.idle_timeout is None:
        return "It runs until `emberd stop`."
    idle = output.duration(status.idle_timeout)
    return f"It stops {idle} after its last use, or by `emberd stop`."


def _lines(server: Server, spec: ServerSpec) -> list[str]:
    endpoint = server.endpoint
    context = f", {endpoint.context_tokens} tokens" if endpoint.context_tokens else ""
    size = f"{endpoint.dimensions} dimensions{context}"
    if spec.task == RERANK:
        size = f"a reranker{context}"
    took = output.start_phases(server.phases)
    return [
        f"{spec.model} is served at {endpoint.base_url} ({size})",
        f"  {server.reason}. {_lifetime(server)}",
        *([f"  It {took}."] if server.started and took else []),
        *([f"  {_NOT_QWEN}"] if spec.model == DEMO_MODEL else []),
        *([f"  {_OPEN}"] if server.origin == "own" and endpoint.api_key is None else []),
        *(f"  Note: {note}" for note in server.notes),
        "",
        *_usage(server, spec),
    ]


def _usage(server: Server, spec: ServerSpec) -> list[str]:
    is_given = server.origin == "given"
    if is_given:  # it is chosen by its URL, and not by these
        spec = replace(spec, engine=None, device=None)
    wishes = {
        "model": spec.model if spec.model != DEFAULT_MODELS[spec.task] else None,
        "revision": spec.revision,
        "quantization": spec.quantization,
        "engine": spec.engine,
        "device": spec.device,
        # Other programs cannot find a given server, so they need its URL too.
        "base_url": server.endpoint.base_url if is_given else None,
    }
    given = {name: value for name, value in wishes.items() if value is not None}
    keywords = ", ".join(f"{name}={value!r}" for name, value in given.items())
    api_key = environment.setting_variable("api_key", spec.task)
    needs_key = is_given and server.endpoint.api_key is not None
    key_line = [_KEY_OF_GIVEN.format(variable=api_key)] if needs_key else []
    if spec.task == RERANK:
        return [f"  Python       emberd.Reranker({keywords})", *key_line]
    renamed = keywords.replace("model=", "model_name=", 1)
    variable = shlex.quote(server.endpoint.base_url) if is_given else None
    prefix = f"EMBERD_BASE_URL={variable} " if variable else ""
    env_line = options.command_line("env", spec)
    return [
        f"  LangChain    langchain_emberd.EmberdEmbeddings({keywords})",
        f"  LlamaIndex   llama_index.embeddings.emberd.EmberdEmbedding({renamed})",
        f"  Python       emberd.Embedder({keywords})",
        f'  OpenAI SDK   eval "$({prefix}{env_line})"',
        *key_line,
    ]


def show_dry_run(starts: Sequence[tuple[ServerSpec, StartOptions]], *, as_json: bool) -> None:
    """Print how servers would be started, without starting one or writing a file.

    Args:
        starts: What to serve, with the options of its start.
        as_json: Whether to print JSON.

    Raises:
        NoEngineError: No engine can serve a model on this machine.
        StartError: The machine does not meet the requirements.
    """
    plans = [_dry_run_content(spec, wanted) for spec, wanted in starts]
    if as_json:
        contents = [content for content, _ in plans]
        output.write_json({"servers": contents} if len(starts) > 1 else contents[0])
        return
    for number, ((spec, wanted), (content, items)) in enumerate(zip(starts, plans, strict=True)):
        if len(starts) > 1:
            output.write_line(f"{'' if number == 0 else chr(10)}{spec.model}:")
        for line in _dry_run_lines(content, items, any_port=wanted.port is None):
            output.write_line(line)


def _dry_run_content(
    spec: ServerSpec, options: StartOptions
) -> tuple[dict[str, Any], Sequence[Item]]:
    # Imported late, to keep the other subcommands fast.
    from emberd.manager import gpu_servers
    from emberd.system.redaction import redactor, secrets, words

    missing = downloads.find(spec, options)
    engine = engines.load(missing.engine) if missing and missing.engine else engines.choose(spec)
    home = Places.resolve().home
    plan = dry_run(
        *(engine, spec, options, home),
        interpreter=missing.interpreter if missing else None,
        servers=gpu_servers.of_home(home, restarted=spec),
    )
    items = missing.estimated_items() if missing else []
    redact = redactor(more=secrets(options.arguments))
    content = {
        "model": spec.model,
        "engine": engine.name,
        "device": plan.device,
        "command": words(plan.command, redact),
        # Only what the plan changes: the rest of the environment may contain secrets.
        "environment": {
            name: redact(value)
            for name, value in plan.environment.items()
            if os.environ.get(name) != value and DRY_RUN_KEY not in value
        },
        "removed": sorted(name for name in os.environ if name not in plan.environment),
        "files": sorted(plan.files),
        "reasons": [
            {"what": redact(reason.what), "why": redact(reason.why)} for reason in plan.reasons
        ],
        "notes": [redact(note) for note in plan.notes],
        "missing": [item.as_content() for item in items],
    }
    return content, items


def _dry_run_lines(
    content: Mapping[str, Any], missing: Sequence[Item], *, any_port: bool
) -> Iterator[str]:
    yield "If a server for this model is running, emberd uses it instead."
    yield f"The engine {content['engine']} would run on {content['device']}:"
    yield ""
    if removed := content["removed"]:
        yield f"env {' '.join(f'-u {shlex.quote(name)}' for name in removed)} \\"
    for name, text in sorted(content["environment"].items()):
        yield f"{name}={shlex.quote(text)} \\"
    yield shlex.join(content["command"])
    yield ""
    if content["reasons"]:
        yield "Why:"
        for reason in content["reasons"]:
            yield f"  {reason['what']}"
            yield f"        {reason['why']}"
        yield ""
    if any_port:
        yield f"The port {DRY_RUN_PORT} is a placeholder for any free port."
    for name in content["files"]:
        path = os.path.join(DRY_RUN_FOLDER, name)
        yield f"The file {path} is written at the start with mode 0600. It may contain the key."
    if missing:
        yield "Not on this machine yet; `emberd up` asks before it downloads them:"
        for item in missing:
            yield f"  {item}"
    for note in content["notes"]:
        yield f"Note: {note}"


def _validate_running(found: Server | PendingStart, given: Mapping[str, Any], model: str) -> None:
    """Raise if the server was started differently than the command line requires.

    Args:
        found: The running server, or the start in progress.
        given: Command-line options by field of ``StartOptions``.
        model: Model of the server, for the message.

    Raises:
        SettingError: It was; the message names the options and the server.
    """
    unmet = {name: given[name] for name in found.unmet(given)}
    if not unmet:
        return
    stop = f"run `emberd stop {shlex.quote(model)}` first, which stops it for all its users"
    if not isinstance(found, Server):
        fact, step = f"a server of {model} is already starting without these options", stop
    elif found.origin == "own":
        key = "with" if found.endpoint.api_key else "without"
        fact = f"{model} is already served at {found.endpoint.url} ({key} a key) by a server "
        fact, step = f"{fact}started without these options", stop
    else:
        fact = f"{model} is already served at {found.endpoint.url} by a server that emberd did "
        fact, step = f"{fact}not start", "stop that server where it was started"
    raise SettingError(
        f"{options.as_typed(unmet)} cannot be applied: {fact}. To use it as it is, omit the "
        f"options; otherwise {step}."
    )


def _notes(server: Server, settings: Settings, idle_timeout: str | None) -> Iterator[str]:
    """Yield a note for each setting that does not apply to ``server``, or is not checked on it.

    Args:
        server: The server in use.
        settings: The settings. Those that are an error on the command line come from the
            environment.
        idle_timeout: ``--idle-timeout`` as typed; None if it was left out.
    """
    if idle_timeout is not None or environment.text(environment.IDLE_TIMEOUT):
        given = idle_timeout is not None
        asked = f"--idle-timeout {idle_timeout}" if given else environment.IDLE_TIMEOUT
        if server.origin != "own":
            yield f"{asked} has no effect: emberd did not start the server and does not stop it."
        elif settings.idle_timeout is not None and (status := _status_of(server)) is not None:
            longest_s = status.idle_timeout
            if longest_s is None or longest_s > settings.idle_timeout:
                longest = "never" if longest_s is None else output.duration(longest_s)
                yield (
                    f"{asked} has no effect: the idle timeout is {longest}, the longest one that "
                    f"was requested."
                )
    if server.origin != "given":
        return
    url = server.endpoint.url
    base_url = environment.setting_variable("base_url", settings.task)
    for name in ("engine", "device", "context_tokens"):
        if getattr(settings, name) is not None:
            variable = f"EMBERD_{name.upper()}"
            yield f"{variable} has no effect: the server at {url} is given by {base_url}."
    for name in ("revision", "quantization"):
        if (wanted := getattr(settings, name)) is not None:
            yield (
                f"The {name} of a given server is not checked: {url} may serve another one than "
                f"{wanted}."
            )


def _status_of(server: Server) -> ServerStatus | None:
    """Return the status of a server that emberd started; None if it has stopped."""
    return next((s for s in Manager().status() if s.start_id == server.start_id), None)

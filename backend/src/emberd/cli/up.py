"""``emberd up``: find or start a server, or show how one would be started."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from emberd import engines, env
from emberd.catalog import DEMO_MODEL
from emberd.cli import options, output
from emberd.engines import Plan
from emberd.engines.base import DRY_RUN_FOLDER, DRY_RUN_KEY, DRY_RUN_PORT, dry_run
from emberd.env import Places
from emberd.errors import SettingError
from emberd.manager import Server
from emberd.settings import ServerSpec, Settings, StartOptions
from emberd.verified_manager import Manager

if TYPE_CHECKING:
    from emberd.manager import Check, PendingStart, Progress, ServerStatus

NOT_QWEN: Final = (
    "The vectors of emberd/demo are those of multilingual-e5-small: they are NOT Qwen3 vectors. "
    "An index of them cannot be used with another model."
)

OPEN: Final = (
    "It requires no key: every user of this machine, and every web page in a browser on it, can "
    "use it, read its metrics and fill its queue. It listens only on loopback; never forward the "
    "port."
)

_KEY_OF_GIVEN: Final = (
    "  Set EMBERD_API_KEY for each of them: emberd does not store the key of a given server."
)


def up(
    name: options.ModelName = None,
    model: options.Model = None,
    engine: options.Engine = None,
    device: options.Device = None,
    context_tokens: options.ContextTokens = None,
    revision: options.Revision = None,
    idle_timeout: options.IdleTimeout = None,
    start_timeout: options.StartTimeout = None,
    port: options.Port = None,
    no_auth: options.NoAuth = False,
    tp_size: options.TpSize = None,
    dp_size: options.DpSize = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
    arguments: options.Arguments = None,
) -> None:
    """Find or start a server and wait for it.

    Uses a running server of the model, including an external one, or joins a start in progress. An
    option that says how to start a server is an error if that server was started differently. A
    start that failed recently is retried, unlike in programs.

    Arguments for the engine go after --, for example: emberd up MODEL -- --flag value

    Prints the server, why it was chosen, and how to use it.
    """
    given = _given(port, tp_size, dp_size, arguments, no_auth=no_auth)
    wanted = StartOptions.resolve(**given)
    settings = options.settings(
        model=options.resolve_model(name, model),
        engine=engine,
        device=device,
        context_tokens=context_tokens,
        revision=revision,
        idle_timeout=idle_timeout,
        start_timeout=start_timeout,
        embeds=False,
    )
    options.validate_with_base_url(settings.base_url, given)
    if dry_run:
        show_dry_run(settings.spec, wanted, as_json=as_json)
        return
    check = partial(validate_running, given=given, model=settings.model)
    server = ensure(settings, retry_failed=True, options=wanted, check=check)
    server = server.noting_unmet(overridden=given)
    idle = idle_notes(server, settings.idle_timeout, idle_timeout)
    unchecked = given_notes(server, settings)
    server = replace(server, notes=(*server.notes, *idle, *unchecked))
    if as_json:
        output.write_json(as_content(server))
    else:
        for line in _lines(server, settings.spec):
            output.write_line(line)


def as_content(server: Server) -> dict[str, Any]:
    """Return the JSON form of a server, without its key."""
    endpoint = server.endpoint
    return {
        "url": endpoint.url,
        "base_url": endpoint.base_url,
        "model": endpoint.model,
        "dimensions": endpoint.dimensions,
        "context_tokens": endpoint.context_tokens,
        "origin": server.origin,
        "reason": server.reason,
        "started": server.started,
        "engine": server.engine,
        "start_id": server.start_id,
        "folder": server.folder,
        "notes": list(server.notes),
    }


def _lifetime(server: Server) -> str:
    """Return in one sentence when a server stops."""
    if server.origin != "own":
        return "emberd did not start it and will not stop it."
    status = status_of(server)
    if status is None or status.idle_timeout is None:
        return "It runs until `emberd stop`."
    idle = output.duration(status.idle_timeout)
    return f"It stops {idle} after its last use, or by `emberd stop`."


def _given(
    port: int | None,
    tp_size: int | None,
    dp_size: int | None,
    arguments: list[str] | None,
    *,
    no_auth: bool,
) -> dict[str, Any]:
    """Return the command-line options by field of ``StartOptions``."""
    values = {
        "port": port,
        "no_auth": no_auth or None,
        "tp_size": tp_size,
        "dp_size": dp_size,
        "arguments": tuple(arguments) if arguments else None,
    }
    return {name: value for name, value in values.items() if value is not None}


def _lines(server: Server, spec: ServerSpec) -> list[str]:
    endpoint = server.endpoint
    context = f", {endpoint.context_tokens} tokens" if endpoint.context_tokens else ""
    size = f"{endpoint.dimensions} dimensions{context}"
    return [
        f"{spec.model} is served at {endpoint.base_url} ({size})",
        f"  {server.reason}. {_lifetime(server)}",
        *([f"  {NOT_QWEN}"] if spec.model == DEMO_MODEL else []),
        *([f"  {OPEN}"] if server.origin == "own" and endpoint.api_key is None else []),
        *(f"  Note: {note}" for note in server.notes),
        "",
        *_usage(server, spec),
    ]


def _usage(server: Server, spec: ServerSpec) -> list[str]:
    is_given = server.origin == "given"
    wishes = {
        "model": spec.model if spec.model != ServerSpec().model else None,
        "revision": spec.revision,
        # Options that choose a server; this one is chosen by its URL.
        "engine": None if is_given else spec.engine,
        "device": None if is_given else spec.device,
        # Other programs cannot find a given server, so they need its URL too.
        "base_url": server.endpoint.base_url if is_given else None,
    }
    given = {name: value for name, value in wishes.items() if value is not None}
    keywords = ", ".join(f"{name}={value!r}" for name, value in given.items())
    renamed = keywords.replace("model=", "model_name=", 1)
    flags = "".join(
        f" --{name} {shlex.quote(value)}" for name, value in given.items() if name != "base_url"
    )
    variable = shlex.quote(server.endpoint.base_url) if is_given else None
    prefix = f"EMBERD_BASE_URL={variable} " if variable else ""
    return [
        f"  LangChain    langchain_emberd.EmberdEmbeddings({keywords})",
        f"  LlamaIndex   llama_index.embeddings.emberd.EmberdEmbedding({renamed})",
        f"  Python       emberd.Embedder({keywords})",
        f'  OpenAI SDK   eval "$({prefix}emberd env{flags})"',
        *([_KEY_OF_GIVEN] if variable and server.endpoint.api_key else []),
    ]


_INDENT: Final = "    "
_USED_INSTEAD: Final = "A running server of the model would be used instead."

Redact = Callable[[str], str]


def show_dry_run(spec: ServerSpec, options: StartOptions, *, as_json: bool) -> None:
    """Print how a server for ``spec`` would be started, without starting it or writing a file.

    Raises:
        NoEngineError: No engine can serve the model on this machine.
        StartError: The machine does not meet the requirements.
    """
    # Imported late, to keep the other subcommands fast.
    from emberd.system.redaction import redactor, secrets, words

    engine = engines.choose(spec)
    plan = dry_run(engine, spec, options, Places.resolve().home)
    redact = redactor(more=secrets(options.arguments))
    command = words(plan.command, redact)
    if as_json:
        output.write_json(_content(engine.name, plan, command, redact))
        return
    for line in _dry_run_lines(engine.name, plan, command, redact, any_port=options.port is None):
        output.write_line(line)


def _content(engine: str, plan: Plan, command: list[str], redact: Redact) -> dict[str, object]:
    return {
        "engine": engine,
        "device": plan.device,
        "command": command,
        "environment": _added(plan, redact),
        "removed": _removed(plan),
        "files": sorted(plan.files),
        "reasons": [
            {"what": redact(reason.what), "why": redact(reason.why)} for reason in plan.reasons
        ],
        "notes": [redact(note) for note in plan.notes],
    }


def _dry_run_lines(
    engine: str, plan: Plan, command: list[str], redact: Redact, *, any_port: bool
) -> list[str]:
    return [
        _USED_INSTEAD,
        f"The engine {engine} would run on {plan.device}:",
        "",
        *_prefix(plan),
        *(f"{name}={shlex.quote(text)} \\" for name, text in sorted(_added(plan, redact).items())),
        shlex.join(command),
        "",
        *_reasons(plan, redact),
        *([f"The port {DRY_RUN_PORT} is a placeholder for any free port."] if any_port else []),
        *(_written(name) for name in sorted(plan.files)),
        *(f"Note: {redact(note)}" for note in plan.notes),
    ]


def _prefix(plan: Plan) -> list[str]:
    removed = _removed(plan)
    options = " ".join(f"-u {shlex.quote(name)}" for name in removed)
    return [f"env {options} \\"] if removed else []


def _written(name: str) -> str:
    place = os.path.join(DRY_RUN_FOLDER, name)
    return f"The file {place} is written at the start with mode 0600. It may contain the key."


def _reasons(plan: Plan, redact: Redact) -> list[str]:
    if not plan.reasons:
        return []
    lines = ["Why:"]
    for reason in plan.reasons:
        lines += [f"  {redact(reason.what)}", f"{_INDENT}{_INDENT}{redact(reason.why)}"]
    return [*lines, ""]


def _added(plan: Plan, redact: Redact) -> dict[str, str]:
    # Only what the plan changes: the rest of the environment may contain secrets.
    return {
        name: redact(value)
        for name, value in plan.environment.items()
        if os.environ.get(name) != value and DRY_RUN_KEY not in value
    }


def _removed(plan: Plan) -> list[str]:
    # Also removed for a command that is run by hand.
    return sorted(name for name in os.environ if name not in plan.environment)


def validate_running(found: Server | PendingStart, given: Mapping[str, Any], model: str) -> None:
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
        fact, step = f"a server of {model} is already starting without them", stop
    elif found.origin == "own":
        key = "with" if found.endpoint.api_key else "without"
        fact = f"{model} is already served at {found.endpoint.url} ({key} a key) by a server "
        fact, step = f"{fact}started without them", stop
    else:
        fact = f"{model} is already served at {found.endpoint.url} by a server that emberd did "
        fact, step = f"{fact}not start", "stop that server where it was started"
    raise SettingError(
        f"{options.as_typed(unmet)} cannot be applied: {fact}. To use it as it is, leave the "
        f"options out; otherwise {step}."
    )


def idle_notes(server: Server, wanted_s: float | None, given: str | None) -> Iterator[str]:
    """Yield a note if the requested idle timeout is not the one of ``server``.

    The longest timeout that any client requested applies.

    Args:
        server: The server in use.
        wanted_s: The idle timeout in the settings, in seconds; None for never.
        given: ``--idle-timeout`` as typed; None if it was left out.
    """
    if given is None and not env.text(env.IDLE_TIMEOUT):
        return
    asked = env.IDLE_TIMEOUT if given is None else f"--idle-timeout {given}"
    if server.origin != "own":
        yield f"{asked} has no effect: emberd did not start the server and does not stop it."
        return
    status = status_of(server)
    if status is None or wanted_s is None:
        return
    longest_s = status.idle_timeout
    if longest_s is None or longest_s > wanted_s:
        longest = "never" if longest_s is None else output.duration(longest_s)
        yield (
            f"{asked} has no effect: the idle timeout is {longest}, the longest one that was "
            f"requested."
        )


def given_notes(server: Server, settings: Settings) -> Iterator[str]:
    """Yield a note for each setting that is not checked on a server given by its URL.

    Args:
        server: The server in use.
        settings: The settings. Those that are an error on the command line come from the
            environment.
    """
    if server.origin != "given":
        return
    for name in ("engine", "device", "context_tokens"):
        if getattr(settings, name) is not None:
            variable, url = f"EMBERD_{name.upper()}", server.endpoint.url
            yield f"{variable} has no effect: the server at {url} is given by EMBERD_BASE_URL."
    if settings.revision is not None:
        yield (
            f"The revision of a given server is not checked: {server.endpoint.url} may serve "
            f"another one than {settings.revision}."
        )


def status_of(server: Server) -> ServerStatus | None:
    """Return the status of a server that emberd started; None if it has stopped."""
    from emberd.verified_manager import Manager

    return next((s for s in Manager().status() if s.start_id == server.start_id), None)


_LINE_EVERY_S: Final = 10.0


class StartProgress:
    """Progress of a start on stderr: one line on a terminal, else one per change and per 10 s."""

    def __init__(self, model: str) -> None:
        """Report the start of a server of ``model``. Writes nothing before the first progress."""
        self._model = model
        self._spinner = output.Spinner()
        self._last = ("", -_LINE_EVERY_S)

    def __enter__(self) -> StartProgress:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the line."""
        self._spinner.stop()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            # Also before the first progress: a start may already be running.
            output.note(
                "A running start continues: `emberd status` shows it, `emberd stop` stops it."
            )

    def show(self, progress: Progress) -> None:
        """Show ``progress``."""
        if sys.stderr.isatty():
            self._spinner.update(self._line(progress))
            return
        text, at_s = self._last
        if progress.text != text or progress.seconds - at_s >= _LINE_EVERY_S:
            self._last = (progress.text, progress.seconds)
            output.note(self._line(progress))

    def _line(self, progress: Progress) -> str:
        doing = progress.text or "starting"
        return f"{self._model}: {doing} ({output.duration(progress.seconds)})"


def ensure(
    settings: Settings,
    *,
    retry_failed: bool = False,
    options: StartOptions | None = None,
    check: Check | None = None,
) -> Server:
    """Return a server for ``settings``, found or started.

    Raises:
        EmberdError: What ``Manager.ensure`` or ``check`` raises.
    """
    with StartProgress(settings.model) as waiting:
        return Manager().ensure(
            settings.spec,
            base_url=settings.base_url,
            api_key=settings.api_key,
            start_timeout=settings.start_timeout,
            idle_timeout=settings.idle_timeout,
            retry_failed=retry_failed,
            options=options,
            check=check,
            on_progress=waiting.show,
        )

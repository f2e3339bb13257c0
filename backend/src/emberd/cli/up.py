"""``emberd up``."""

from __future__ import annotations

import shlex
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from emberd.cli import dry, options, output, reuse, waiting, words
from emberd.settings import ServerSpec, StartOptions, is_demo

if TYPE_CHECKING:
    from emberd.manager import Server

NOT_QWEN: Final = (
    "The vectors of emberd/demo are those of multilingual-e5-small: they are NOT Qwen3 vectors, "
    "and an index made of them is of no use to another model."
)

OPEN: Final = (
    "It asks for no key: every user of this machine can use it, read its figures and fill its "
    "queue, and so can a web page in a browser here. It listens on loopback only; never forward "
    "the port."
)

_KEY_OF_GIVEN: Final = (
    "  Each of them needs EMBERD_API_KEY set: the key of a given server is kept nowhere."
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

    A running server that serves the model is used, also one that emberd did not start; a start in
    progress is joined. An option that says how to start a server is then an error if that server
    was started differently. A start that failed a moment ago is tried again, which programs would
    not do.

    Arguments for the engine go after --, for example: emberd up MODEL -- --flag value

    Says which server it is and why, and how to use it.
    """
    given = _given(port, tp_size, dp_size, arguments, no_auth=no_auth)
    wanted = StartOptions.resolve(**given)
    settings = options.settings(
        model=options.one_model(name, model),
        engine=engine,
        device=device,
        context_tokens=context_tokens,
        revision=revision,
        idle_timeout=idle_timeout,
        start_timeout=start_timeout,
        embeds=False,
    )
    reuse.refuse_beside_base_url(settings.base_url, given)
    if dry_run:
        dry.show(settings.spec, wanted, as_json=as_json)
        return
    check = partial(reuse.refuse_unmet, given=given, model=settings.model)
    server = waiting.ensure(settings, retry_failed=True, options=wanted, check=check)
    server = server.noting_unmet(overridden=given)
    idle = reuse.idle_notes(server, settings.idle_timeout, idle_timeout)
    unchecked = reuse.given_notes(server, settings)
    server = replace(server, notes=(*server.notes, *idle, *unchecked))
    if as_json:
        output.dump(as_content(server))
    else:
        for line in _lines(server, settings.spec):
            output.say(line)


def as_content(server: Server) -> dict[str, Any]:
    """Return a server as JSON shows it: everything but its key."""
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


def stay(server: Server) -> str:
    """Return how long a server stays, in one sentence."""
    if server.origin != "own":
        return "emberd did not start it and will not stop it."
    status = reuse.status_of(server)
    if status is None or status.idle_timeout is None:
        return "It stays until `emberd stop`."
    idle = words.duration(status.idle_timeout)
    return f"It stops {idle} after its last use, or by `emberd stop`."


def _given(
    port: int | None,
    tp_size: int | None,
    dp_size: int | None,
    arguments: list[str] | None,
    *,
    no_auth: bool,
) -> dict[str, Any]:
    """Return the start options of the command line, by the fields of ``StartOptions``."""
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
        f"  {server.reason}. {stay(server)}",
        *([f"  {NOT_QWEN}"] if is_demo(spec.model) else []),
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
        # They choose a server, and this one is chosen by its URL.
        "engine": None if is_given else spec.engine,
        "device": None if is_given else spec.device,
        # A given server is not to be found by others: they must be given it too.
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

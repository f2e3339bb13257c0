"""``emberd env``."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

from emberd.cli import options, output, up

if TYPE_CHECKING:
    from emberd.manager import Server

# The SDK requires a key; servers without one accept any.
_NO_KEY: Final = "EMPTY"

FAILED: Final = "unset OPENAI_BASE_URL OPENAI_API_KEY; false"
"""Printed if there is no server. ``eval`` of an empty output would succeed, and clients would use
the previous values."""


def env(
    name: options.ModelName = None,
    model: options.Model = None,
    engine: options.Engine = None,
    device: options.Device = None,
    revision: options.Revision = None,
    idle_timeout: options.IdleTimeout = None,
    start_timeout: options.StartTimeout = None,
    as_json: options.AsJson = False,
) -> None:
    """Print shell lines for OpenAI clients.

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
        idle_timeout=idle_timeout,
        start_timeout=start_timeout,
        embeds=False,
    )
    server = up.ensure(settings)
    idle = up.idle_notes(server, settings.idle_timeout, idle_timeout)
    for note in (*server.notes, *idle, *up.given_notes(server, settings)):
        output.note(f"note: {note}")
    variables = _variables(server)
    if as_json:
        output.write_json(variables)
    else:
        for variable, value in variables.items():
            output.write_line(f"export {variable}={shlex.quote(value)}")


def _variables(server: Server) -> dict[str, str]:
    return {
        "OPENAI_BASE_URL": server.endpoint.base_url,
        "OPENAI_API_KEY": server.endpoint.api_key or _NO_KEY,
    }

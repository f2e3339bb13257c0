"""``emberd env``."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Final

from emberd.cli import options, output, up

if TYPE_CHECKING:
    from emberd.manager import Server

# The SDK refuses to start without a key; servers that want none take any.
_NO_KEY: Final = "EMPTY"

FAILED: Final = "unset OPENAI_BASE_URL OPENAI_API_KEY; false"
"""What a shell gets when there is no server: ``eval`` of nothing at all would succeed, and what
was set before would be used."""


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

    Finds or starts the server first; returns at once when it runs. Port and key are others when
    the server has been stopped and started: use it again then.

    When it fails, the eval fails too: the line unsets both variables and ends with false.

    This is the only verb that prints the server's key. Roles are the client's business then: an
    OpenAI client sends texts as they are, without the instruction that queries need.
    """
    settings = options.settings(
        model=options.one_model(name, model),
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
        output.dump(variables)
    else:
        for variable, value in variables.items():
            output.say(f"export {variable}={shlex.quote(value)}")


def _variables(server: Server) -> dict[str, str]:
    return {
        "OPENAI_BASE_URL": server.endpoint.base_url,
        "OPENAI_API_KEY": server.endpoint.api_key or _NO_KEY,
    }

"""What a command line asks of a running server: an error or a note if it has no effect."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from emberd import env
from emberd.cli import words
from emberd.errors import SettingError
from emberd.manager import Server

if TYPE_CHECKING:
    from emberd.manager import PendingStart, ServerStatus
    from emberd.settings import Settings


def refuse_beside_base_url(base_url: str | None, given: Mapping[str, Any]) -> None:
    """Do nothing unless options that choose or start a server are given beside one to use.

    Args:
        base_url: The server to use as it is; None when one may be started.
        given: Options of the command line, by the fields of ``Settings`` or ``StartOptions``.

    Raises:
        SettingError: They are; the text names them.
    """
    if base_url is not None and given:
        raise SettingError(
            f"{_spelt(given)} cannot be given: EMBERD_BASE_URL is set to {base_url}, so no server "
            f"is started. Leave the options out, or unset EMBERD_BASE_URL."
        )


def refuse_unmet(found: Server | PendingStart, given: Mapping[str, Any], model: str) -> None:
    """Do nothing if the server is started as the command line asks.

    Args:
        found: The server that would be used, or the start in progress that would be joined.
        given: Start options of the command line, by the fields of ``StartOptions``.
        model: What it serves, for the error.

    Raises:
        SettingError: It is not; the text names the options and the server.
    """
    unmet = {name: given[name] for name in found.unmet(given)}
    if not unmet:
        return
    stop = f"run `emberd stop {shlex.quote(model)}` first, which ends it for all its users"
    if not isinstance(found, Server):
        fact, step = f"a server of {model} is starting already, without that", stop
    elif found.origin == "own":
        key = "with" if found.endpoint.api_key else "without"
        fact = f"{model} is served already at {found.endpoint.url} ({key} a key), by a server "
        fact, step = f"{fact}started without that", stop
    else:
        fact = f"{model} is served already at {found.endpoint.url}, by a server that emberd did "
        fact, step = f"{fact}not start", "stop that server where it was started"
    raise SettingError(
        f"{_spelt(unmet)} cannot be honoured: {fact}. To use it as it is, leave the options out; "
        f"otherwise {step}."
    )


def idle_notes(server: Server, wanted_s: float | None, given: str | None) -> Iterator[str]:
    """Yield a note if the idle timeout that was asked for is not the one of ``server``.

    The longest one that any client asked for counts, so that none loses its server too early.

    Args:
        server: The server that is used.
        wanted_s: The idle timeout in the settings, in seconds; None for never.
        given: ``--idle-timeout`` as it was written; None if it was left out.
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
        longest = "never" if longest_s is None else words.duration(longest_s)
        yield (
            f"{asked} has no effect: the idle timeout in force is {longest}; the longest one that "
            f"was asked for counts."
        )


def given_notes(server: Server, settings: Settings) -> Iterator[str]:
    """Yield a note for each setting that chooses a server and is not checked on one given by URL.

    Args:
        server: The server that is used.
        settings: What was asked for. Of the settings that are an error on the command line, only
            the environment can have given a value.
    """
    if server.origin != "given":
        return
    for name in ("engine", "device", "context_tokens"):
        if getattr(settings, name) is not None:
            variable, url = f"EMBERD_{name.upper()}", server.endpoint.url
            yield f"{variable} has no effect: the server at {url} was given, and none is started."
    if settings.revision is not None:
        yield (
            f"Revision {settings.revision} was asked for. It is not checked on a server that was "
            f"given: {server.endpoint.url} may serve another one."
        )


def status_of(server: Server) -> ServerStatus | None:
    """Return the status of a server that emberd started; None when it is gone."""
    from emberd.verified_manager import Manager

    return next((s for s in Manager().status() if s.start_id == server.start_id), None)


def _spelt(options: Mapping[str, Any]) -> str:
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

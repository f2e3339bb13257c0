"""The gateway in the background, for `emberd serve --background`, `status`, `logs` and `stop`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from emberd.cli import output
from emberd.cli.output import ExitCode
from emberd.errors import StartError
from emberd.gateway.background_gateway import (
    BackgroundGateway,
    GatewayRequest,
    GatewayStatus,
    command_line,
    without_secrets,
)
from emberd.manager import State
from emberd.system.redaction import redactor

if TYPE_CHECKING:
    from emberd.gateway.addresses import Addresses
    from emberd.settings import Settings

GATEWAY: Final = "gateway"
"""What `emberd logs` and `emberd stop` take in the place of a model."""

_LOG_LINES: Final = 12


def start(
    models: Sequence[str | None],
    words: Mapping[str, Any],
    users: Sequence[Settings],
    addresses: Addresses,
    *,
    replaces: bool,
    as_json: bool,
) -> None:
    """Start the gateway, or find the one that runs, and say how to use it.

    Args:
        models: The models as given on the command line.
        words: The other options of `emberd serve`, by name.
        users: The settings of the models.
        addresses: Where it listens.
        replaces: Whether it takes the place of a running one.
        as_json: Write JSON.

    Raises:
        EmberdError: What ``BackgroundGateway.start`` raises.
    """
    arguments = [name for name in models if name is not None]
    for name, value in words.items():
        option = f"--{name.replace('_', '-')}"
        for each in value if isinstance(value, list) else [value]:
            if each is True:
                arguments.append(option)
            elif each is not None and each is not False:  # the port 0 is equal to False
                arguments += [option, str(each)]
    request = GatewayRequest(tuple(arguments), tuple(each.model for each in users), addresses)
    with output.ProgressLine() as line:

        def show(doing: str, seconds: float) -> None:
            line.show(f"gateway: {doing} ({output.duration(seconds)})", topic=doing)

        try:
            found, started = BackgroundGateway().start(
                request,
                replaces=replaces,
                timeout_s=sum(each.start_timeout for each in users),
                on_progress=show,
            )
        except StartError as error:
            if error.log_path:
                error.add_note(_end_of(Path(error.log_path)))
            raise
    if as_json:
        output.write_json({**(as_content(found) or {}), "started": started})
        return
    serves = "serves" if started else "already serves"
    output.write_line(f"The gateway {serves} {', '.join(found.models)}")
    for url in found.urls:
        output.write_line(f"  {url}")
    output.write_line("Its log: `emberd logs gateway`. To end it: `emberd stop gateway`.")


def shown(*, show_all: bool) -> GatewayStatus | None:
    """Return the gateway that `emberd status` shows; None if there is none to show."""
    known = BackgroundGateway().status()
    return None if known is None or (known.state is State.ABSENT and not show_all) else known


def logged() -> GatewayStatus:
    """Return the gateway whose log `emberd logs` shows."""
    known = BackgroundGateway().status()
    if known is None or not Path(known.log_path).is_file():
        output.note("No gateway has a log here. `emberd serve --background` starts one.")
        raise typer.Exit(ExitCode.NOTHING_RUNNING)
    return known


def as_content(known: GatewayStatus | None) -> dict[str, Any] | None:
    """Return the JSON form of the gateway's status; None if there is no gateway."""
    if known is None:
        return None
    return {**asdict(known), "arguments": without_secrets(known.arguments)}


def lines(known: GatewayStatus) -> Iterator[str]:
    """Yield the status of the gateway in words."""
    facts = [
        f"gateway: {known.state} for {output.duration(known.seconds)}",
        *([f"restarted {known.restarts} times"] if known.restarts else []),
        *([known.detail] if known.detail else []),
    ]
    yield ", ".join(facts)
    details = {
        "models": ", ".join(known.models),
        "urls": "  ".join(known.urls),
        "process": f"{known.pid}, supervisor {known.supervisor_pid}" if known.pid else "",
        "started by": command_line(known.arguments),
    }
    for name, text in details.items():
        if text:
            yield f"  {name:<12}{text}"


def _end_of(log: Path) -> str:
    """Return the last lines of a log, without the secrets in it."""
    redact = redactor()
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return "\n".join(f"  {redact(line)}" for line in text.splitlines()[-_LOG_LINES:])

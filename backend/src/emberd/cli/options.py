"""The options that several verbs share, and the settings that they make."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from emberd.errors import SettingError
from emberd.settings import DEFAULT_MODEL, IDLE_TIMEOUT_S, START_TIMEOUT_S, UNSET, Settings, Unset

_NEVER: Final = "never"

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help=f"Name on the hub, or a folder. Else EMBERD_MODEL, else {DEFAULT_MODEL}.",
        show_default=False,
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="Only this engine may serve: sglang, demo, or the dotted name of a module.",
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="cuda or cpu.", show_default=False),
]
Revision = Annotated[
    str | None,
    typer.Option(
        "--revision", metavar="COMMIT", help="Commit of the model on the hub.", show_default=False
    ),
]
IdleTimeout = Annotated[
    str | None,
    typer.Option(
        "--idle-timeout",
        metavar="SECONDS|never",
        help=f"A server stops after so long without use. Else {IDLE_TIMEOUT_S:.0f}.",
        show_default=False,
    ),
]
StartTimeout = Annotated[
    float | None,
    typer.Option(
        "--start-timeout",
        metavar="SECONDS",
        help=f"Wait so long for a start; the start itself goes on. Else {START_TIMEOUT_S:.0f}.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON.")]


def settings(
    *,
    model: str | None = None,
    engine: str | None = None,
    device: str | None = None,
    revision: str | None = None,
    idle_timeout: str | None = None,
    start_timeout: float | None = None,
) -> Settings:
    """Return what was asked for on the command line, else in the environment.

    Raises:
        SettingError: A value cannot be used; it is named.
    """
    return Settings.resolve(
        model=model,
        engine=engine,
        device=device,
        revision=revision,
        idle_timeout=_seconds(idle_timeout),
        start_timeout=start_timeout,
    )


def _seconds(text: str | None) -> float | Unset | None:
    if text is None:
        return UNSET
    if text.strip().casefold() == _NEVER:
        return None
    try:
        return float(text)
    except ValueError:
        raise SettingError(
            f"--idle-timeout {text!r} cannot be read: give a number of seconds, or {_NEVER}."
        ) from None

"""The requested server, read as far as possible: invalid settings are collected, not raised."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from emberd import env, model_files
from emberd.env import Places
from emberd.errors import SettingError
from emberd.settings import DEFAULT_MODEL, ServerSpec, Settings, StartOptions
from emberd.system.redaction import HIDDEN, origin

_SLIP_CHARACTERS: Final = 8


@dataclass(frozen=True, slots=True)
class Wanted:
    """The requested server, and settings that could not be used.

    Attributes:
        spec: The requested server.
        places: Folders and discovery settings.
        options: How to start a server.
        base_url: Root URL of a given server; None if none is given.
        api_key: The key of the given server and of EMBERD_DISCOVER. Never printed.
        problems: Settings that cannot be used, one sentence each.
        given: Command-line options, to repeat in suggested commands.
    """

    spec: ServerSpec
    places: Places
    options: StartOptions = field(default_factory=StartOptions)
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    problems: tuple[str, ...] = ()
    given: Mapping[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """The folder of all state, EMBERD_HOME."""
        return Path(self.places.home)

    @property
    def is_given(self) -> bool:
        """Whether a server is given by its URL, so that none is started."""
        return self.base_url is not None


def read(given: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> Wanted:
    """Return the server requested on the command line, else in the environment.

    Settings that cannot be used are left out and listed in ``problems``. Reads the model's folder.
    """
    problems: list[str] = []
    settings = _settings(given, problems)
    places = _places(environ, problems)
    options = _options(problems)
    problems += _others(environ)
    return Wanted(
        spec=settings.spec if settings else _spec(given, environ, problems),
        places=places,
        options=options,
        base_url=settings.base_url if settings else None,
        api_key=settings.api_key if settings else None,
        problems=tuple(dict.fromkeys(_quiet(text, environ) for text in problems)),
        given=given,
    )


def unread(given: Mapping[str, str], problem: str) -> Wanted:
    """Return the requested server without reading any file."""
    wishes: dict[str, Any] = {"model": env.text("EMBERD_MODEL") or DEFAULT_MODEL, **given}
    spec = ServerSpec(**wishes)
    problems: list[str] = [problem]
    places = _places(os.environ, problems)
    return Wanted(spec, places, problems=tuple(problems), given=given)


def _settings(given: Mapping[str, str], problems: list[str]) -> Settings | None:
    try:
        settings = Settings.resolve(**given)
        _ = settings.spec  # reads the model's folder
        return settings
    except SettingError as error:
        problems.append(str(error))
        return None


def _places(environ: Mapping[str, str], problems: list[str]) -> Places:
    try:
        return Places.resolve()
    except SettingError as error:
        problems.append(str(error))
    from platformdirs import user_state_path

    given = env.text("EMBERD_HOME", environ) or str(user_state_path("emberd", appauthor=False))
    home = os.path.abspath(os.path.expanduser(given))
    return Places(home, env.text("EMBERD_ENGINES", environ) or os.path.join(home, "engines"))


def _options(problems: list[str]) -> StartOptions:
    try:
        return StartOptions.resolve()
    except SettingError as error:
        problems.append(str(error))
        return StartOptions()


def _others(environ: Mapping[str, str]) -> list[str]:
    """Return the error of each variable. Reading them together stops at the first error."""
    found = []
    for name, text in environ.items():
        try:
            env.setting_values({name: text})
            StartOptions.resolve({name: text})
        except SettingError as error:
            found.append(str(error))
    return found


def _quiet(text: str, environ: Mapping[str, str]) -> str:
    """Return ``text`` without the value of its variable if that may be a secret."""
    for name, value in environ.items():
        if name in env.VARIABLES and text.startswith(f"{name}={value!r}"):
            return text.replace(repr(value), _spoken(name, value))
    return text


def _spoken(name: str, value: str) -> str:
    variable = env.VARIABLES[name]
    if variable.display == "origin":
        return repr(" ".join(map(origin, value.replace(",", " ").split())))
    # Typing errors are short. A long value may be a key meant for another variable.
    is_slip = len(value) <= _SLIP_CHARACTERS and variable.repeats
    return repr(value) if is_slip else HIDDEN


def _spec(given: Mapping[str, str], environ: Mapping[str, str], problems: list[str]) -> ServerSpec:
    wishes: dict[str, Any] = {
        name: given.get(name) or env.text(f"EMBERD_{name.upper()}", environ)
        for name in ("revision", "engine", "device")
    }
    named = given.get("model") or env.text("EMBERD_MODEL", environ) or DEFAULT_MODEL
    model = model_files.absolute(named)
    try:
        return ServerSpec(model=model, content=model_files.content_hash(model), **wishes)
    except SettingError as error:
        problems.append(str(error))
        return ServerSpec(model=model, **wishes)

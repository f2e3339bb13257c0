"""The environment variables that emberd reads, and the paths derived from them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from emberd import durations
from emberd.endpoint import root_url
from emberd.errors import SettingError


@dataclass(frozen=True, slots=True)
class _Form:
    """How a variable is read, and what it must be, for people."""

    read: Callable[[str], Any]
    wanted: str


_YES: Final = ("1", "true", "yes", "on")
_NO: Final = ("0", "false", "no", "off")


def _switch(text: str) -> bool:
    word = text.strip().casefold()
    if word not in _YES + _NO:
        raise ValueError(text)
    return word in _YES


def switch(environ: Mapping[str, str], variable: str) -> bool:
    """Return whether a variable says yes; one that is not set or empty says no.

    Raises:
        SettingError: It says neither yes nor no.
    """
    text = environ.get(variable)
    try:
        return bool(text) and _switch(str(text))
    except ValueError as error:
        raise SettingError(f"{variable}={text!r} cannot be read: give 1 or 0.") from error


_TEXT: Final = _Form(str, "a text")
_NUMBER: Final = _Form(int, "a whole number")
_DURATION: Final = _Form(durations.seconds, durations.FORMS)
_YES_NO: Final = _Form(_switch, "1 or 0")

_VARIABLES: Final[dict[str, _Form]] = {
    "model": _TEXT,
    "dimensions": _NUMBER,
    "query_instruction": _TEXT,
    "document_instruction": _TEXT,
    "symmetric": _YES_NO,
    "base_url": _TEXT,
    "api_key": _TEXT,
    "revision": _TEXT,
    "engine": _TEXT,
    "device": _TEXT,
    "context_tokens": _NUMBER,
    "batch_size": _NUMBER,
    "max_concurrency": _NUMBER,
    "timeout": _DURATION,
    "start_timeout": _DURATION,
    "idle_timeout": _Form(durations.seconds_or_never, durations.FORMS_OR_NEVER),
    "truncate": _YES_NO,
    "server_dimensions": _YES_NO,
    "show_progress": _YES_NO,
    "cache": _TEXT,
}
"""Fields that the environment may set, as EMBERD_ and the name in capitals; how each is read."""


def read(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings that the environment gives.

    Raises:
        SettingError: A variable cannot be read; it is named.
    """
    values: dict[str, Any] = {}
    for name, form in _VARIABLES.items():
        variable = f"EMBERD_{name.upper()}"
        text = environ.get(variable)
        if text is None or (text == "" and not name.endswith("_instruction")):
            continue
        try:
            values[name] = form.read(text)
        except ValueError as error:
            raise SettingError(
                f"{variable}={text!r} cannot be read: give {form.wanted}."
            ) from error
    return values


# ------------------------------------------------------------ paths


@dataclass(frozen=True, slots=True)
class Places:
    """Where emberd keeps things, and what it is told to look at; from the environment.

    Attributes:
        home: State of servers; ``EMBERD_HOME``, else the platform's state folder.
        engines: Environments of engines; ``EMBERD_ENGINES``, else ``engines`` in the home.
        discover: URLs that ``EMBERD_DISCOVER`` lists, separated by commas or spaces.
        auto_install: ``EMBERD_AUTO_INSTALL``: an engine that a start needs may be installed by it.
    """

    home: str
    engines: str
    discover: tuple[str, ...] = ()
    auto_install: bool = False

    @classmethod
    def resolve(cls, home: str | os.PathLike[str] | None = None) -> Places:
        """Return the places of this process; ``home`` wins over ``EMBERD_HOME``."""
        root = os.fspath(home) if home else os.environ.get("EMBERD_HOME") or _default_home()
        root = os.path.abspath(os.path.expanduser(root))
        listed = os.environ.get("EMBERD_DISCOVER", "").replace(",", " ").split()
        engines = os.environ.get("EMBERD_ENGINES") or os.path.join(root, "engines")
        return cls(
            home=root,
            # Absolute: a supervisor lives in the root folder, and is to find what its starter
            # found.
            engines=os.path.abspath(os.path.expanduser(engines)),
            discover=tuple(root_url(url, "EMBERD_DISCOVER") for url in listed),
            auto_install=switch(os.environ, "EMBERD_AUTO_INSTALL"),
        )


def _default_home() -> str:
    # Imported late: most processes of a test suite or a container set EMBERD_HOME.
    from platformdirs import user_state_path

    return str(user_state_path("emberd", appauthor=False))

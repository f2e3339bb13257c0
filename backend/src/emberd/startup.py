"""How a server is to be started, where one is started: wishes that are no part of what it serves.

A running server is used whatever these say: they are neither identity nor constraint. What it was
not started with is reported, see ``emberd.manager.server.Server.unmet``.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from emberd.errors import SettingError

_PORTS: Final = range(1, 65_536)


@dataclass(frozen=True, slots=True)
class StartOptions:
    """How to start a server.

    Attributes:
        port: The loopback port that it is to listen on; None for any that is free.
        no_auth: It asks for no key: every user and every web page of this machine may use it.
        tp_size: GPUs over which one copy of the model is spread.
        dp_size: Copies of the model, each on GPUs of its own.
        arguments: Put behind the engine's own, as they are; the last of two that clash wins.
    """

    port: int | None = None
    no_auth: bool = False
    tp_size: int = 1
    dp_size: int = 1
    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # A record keeps them as JSON, which knows lists alone.
        object.__setattr__(self, "arguments", tuple(self.arguments))
        if self.port is not None and self.port not in _PORTS:
            raise SettingError(f"port={self.port} is no port: give one from 1 to 65535.")
        for name in ("tp_size", "dp_size"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name}={getattr(self, name)} must be at least 1.")

    @property
    def gpus(self) -> int:
        """How many GPUs a server started like this takes."""
        return self.tp_size * self.dp_size

    @classmethod
    def resolve(cls, environ: Mapping[str, str] = os.environ, **given: Any) -> StartOptions:
        """Return what was given, else what the environment says, else the defaults.

        Args:
            environ: Where ``EMBERD_PORT``, ``EMBERD_TP_SIZE``, ``EMBERD_DP_SIZE`` and
                ``EMBERD_ENGINE_ARGS`` (words as a shell would split them) are looked for. An
                open server is never asked for by the environment.
            **given: Fields of this class; None counts as not given.

        Raises:
            SettingError: A value cannot be used; it is named.
        """
        values = in_environment(environ)
        return replace(cls(**values), **{n: v for n, v in given.items() if v is not None})


def in_environment(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return the options that the environment gives, by the fields of ``StartOptions``.

    Raises:
        SettingError: A variable cannot be read; it is named.
    """
    return {
        name: _read(variable, environ[variable], read)
        for name, (variable, read) in _VARIABLES.items()
        if environ.get(variable)
    }


def variable(name: str) -> str:
    """Return the environment variable of an option that has one."""
    return _VARIABLES[name][0]


def _split(text: str) -> tuple[str, ...]:
    return tuple(shlex.split(text))


_VARIABLES: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "port": ("EMBERD_PORT", int),
    "tp_size": ("EMBERD_TP_SIZE", int),
    "dp_size": ("EMBERD_DP_SIZE", int),
    "arguments": ("EMBERD_ENGINE_ARGS", _split),
}


def _read(variable: str, text: str, read: Callable[[str], Any]) -> Any:
    try:
        return read(text)
    except ValueError as error:
        # Arguments may hold secrets, and are not repeated; numbers are.
        shown = variable if read is _split else f"{variable}={text!r}"
        raise SettingError(f"{shown} cannot be read: {error}. Correct it.") from error

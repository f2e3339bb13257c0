"""A server's address: its URL, its key, and the listening socket that was verified."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from emberd.errors import SettingError
from emberd.system.listeners import Listener


@runtime_checkable
class Secret(Protocol):
    """A text that does not print itself, such as pydantic's ``SecretStr``."""

    def get_secret_value(self) -> str:
        """Return the text."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A verified place to send texts to.

    Attributes:
        url: Root of the server, without ``/v1`` and without a slash at the end.
        model: The name that the server goes by; sent with each request.
        dimensions: Length of its native vectors.
        context_tokens: Longest text that it takes, in tokens; None when it does not say.
        api_key: Its key, or None when it wants none. Never printed.
        server: What kind of server answers, in one word; for people.
        listener: The listening socket that was verified; each new connection is checked against
            it before anything is sent. None for a server on another machine.
        canary: The vector of the text that verified it, as the server gave it; empty when it is
            not kept. A server that comes back must give the same one.
    """

    url: str
    model: str
    dimensions: int
    context_tokens: int | None = None
    api_key: str | None = field(default=None, repr=False)
    server: str = "unknown"
    listener: Listener | None = None
    canary: tuple[float, ...] = field(default=(), repr=False, compare=False)

    @property
    def base_url(self) -> str:
        """The URL that OpenAI clients want: with ``/v1``."""
        return f"{self.url}/v1"


def root_url(url: str, name: str = "base_url") -> str:
    """Return ``url`` without a trailing slash or ``/v1``.

    Args:
        url: What was given.
        name: Where it was given, for the error.

    Raises:
        SettingError: It is not an http or https URL, or has a part that may hold secrets, which
            would then stand in logs and errors too.
    """
    # First of all, for the other errors repeat the URL.
    if "@" in url:
        raise SettingError(
            f"{name} has a user name or password in it. Leave them out, and give api_key=, or a "
            f"client of your own (client=) where the server wants another way to log in."
        )
    if "?" in url or "#" in url:
        raise SettingError(
            f"{name} has a query (?) or a fragment (#) in it. Leave it out, and give a client of "
            f"your own (client=) where the server wants one."
        )
    bare = url.strip().rstrip("/").removesuffix("/v1").rstrip("/")
    if not bare.startswith(("http://", "https://")) or bare.endswith("//"):
        raise SettingError(
            f"{name}={url!r} is not an http(s) URL. Write it like http://127.0.0.1:30000/v1."
        )
    return bare


def read_url(given: object) -> str:
    """Return ``given`` as ``root_url`` does.

    Raises:
        SettingError: It is not a string, or not a URL that can be used.
    """
    if not isinstance(given, str):
        raise SettingError(f"base_url is of type {type(given).__name__} and must be a text.")
    return root_url(given)


def read_key(given: object) -> str | None:
    """Return a key that can stand in a header, or None for a blank one.

    Raises:
        SettingError: It is none; the text never shows it.
    """
    if isinstance(given, Secret):
        given = given.get_secret_value()
    if not isinstance(given, str):
        raise SettingError(f"api_key is of type {type(given).__name__} and must be a text.")
    key = given.strip()
    if not all("!" <= character <= "~" for character in key):
        raise SettingError(
            "api_key has a space, a line break or a character outside of ASCII in it, which no "
            "HTTP header can carry. Look whether it was copied whole, and nothing with it."
        )
    return key or None

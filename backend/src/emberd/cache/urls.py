"""What a cache's URL may say. Nothing is opened or imported to find out."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from emberd import durations, env
from emberd.errors import SettingError

SQLITE: Final = "sqlite"
MEMCACHED: Final = "memcached"
REDIS: Final = ("redis", "rediss")

_PORTS: Final = {"redis": 6379, "rediss": 6379, MEMCACHED: 11211}
_MAX_PORT: Final = 65535
_FORMS: Final = (
    "sqlite, sqlite:///absolute/path.db, redis://host:port/0, rediss://host:port/0 or "
    "memcached://host:port"
)

DEFAULT_MAX_BYTES: Final = 10 * 1000**3
SMALLEST_MAX_BYTES: Final = 64 * 1000**2
"""Below this a limit would be less than what one transaction writes and its log holds."""

DTYPES: Final = ("float32", "float16")


@dataclass(frozen=True, slots=True)
class Place:
    """A cache's URL, taken apart.

    Attributes:
        url: As it was given.
        scheme: ``sqlite``, ``redis``, ``rediss`` or ``memcached``.
        path: The file; empty for the one in emberd's home.
        servers: Hosts and ports.
        database: Number of the database in Redis.
        dtype: How numbers are kept.
        max_bytes: The limit of a file.
        ttl_s: Seconds after which a server drops an entry; None for when it needs the room.
    """

    url: str
    scheme: str
    path: str = ""
    servers: tuple[tuple[str, int], ...] = ()
    database: int = 0
    dtype: str = "float32"
    max_bytes: int = DEFAULT_MAX_BYTES
    ttl_s: int | None = None


def check(url: str) -> None:
    """Do nothing if ``url`` names a cache that could be.

    Raises:
        SettingError: It does not; the text says why, and what to give.
    """
    parse(url)


def parse(url: str) -> Place:
    """Take a cache's URL apart.

    Raises:
        SettingError: It cannot be used.
    """
    if not isinstance(url, str) or not url.strip():
        raise SettingError(f"cache={url!r} must be a text: {_FORMS}.")
    if "@" in url and not url.startswith((f"{SQLITE}:///", f"{SQLITE}?")):
        # First of all, for the other errors repeat the URL.
        raise SettingError(
            f"The cache's URL holds a user or a password, which would show in logs and pickles. "
            f"Leave out the part before the @, and set {env.CACHE_USER} and {env.CACHE_PASSWORD}."
        )
    parts = _split(url)
    if parts.scheme == SQLITE:
        return Place(url, SQLITE, path=_path(parts, url), **_options(parts, url, _FILE_OPTIONS))
    if parts.scheme not in _PORTS:
        raise SettingError(f"{_told(url)} names no kind of cache: give {_FORMS}.")
    options = _options(parts, url, _SERVER_OPTIONS)
    if parts.scheme in REDIS:
        options["database"] = _database(parts, url)
    return Place(url, parts.scheme, servers=_servers(parts, url), **options)


def _told(url: str) -> str:
    """Return what an error tells of a URL: not its options, of which one may be a secret."""
    return f"cache={re.split('[?#]', url, maxsplit=1)[0]!r}"


def _split(url: str) -> SplitResult:
    bare, mark, query = url.strip().partition("?")
    if bare == SQLITE:
        url = f"{SQLITE}://{mark}{query}"
    try:
        return urlsplit(url.strip())
    except ValueError as error:
        raise SettingError(f"{_told(url)} cannot be read ({error}): give {_FORMS}.") from error


def _path(parts: SplitResult, url: str) -> str:
    path = unquote(parts.path)
    if os.name == "nt":
        path = path.lstrip("/")
    if parts.netloc or (path and (not os.path.isabs(path) or path.endswith("/"))):
        raise SettingError(
            f"{_told(url)} names no file by its whole path: give sqlite:///absolute/path.db, with "
            f"three slashes, or sqlite alone for the file in emberd's home."
        )
    return path


def _database(parts: SplitResult, url: str) -> int:
    number = parts.path.strip("/") or "0"
    if not number.isascii() or not number.isdigit():
        raise SettingError(f"{_told(url)}: {number!r} is no number of a database; give /0.")
    return int(number)


def _servers(parts: SplitResult, url: str) -> tuple[tuple[str, int], ...]:
    several = parts.scheme == MEMCACHED
    if several and parts.path.strip("/"):
        raise SettingError(f"{_told(url)}: Memcached knows no {parts.path!r}; leave it out.")
    named = parts.netloc.split(",")
    if len(named) > 1 and not several:
        raise SettingError(f"{_told(url)} names {len(named)} servers: give one for Redis.")
    return tuple(_server(name, _PORTS[parts.scheme], url) for name in named)


def _server(name: str, port: int, url: str) -> tuple[str, int]:
    wrong = f"{_told(url)}: {name!r} is no host and port; give host:port, or [address]:port."
    try:
        parts = urlsplit(f"//{name}")
        host, told = parts.hostname, parts.port
    except ValueError as error:
        raise SettingError(wrong) from error
    if not host or told == 0 or any(character.isspace() for character in name):
        raise SettingError(wrong)
    return host, told or port


# ---------------------------------------------------------------- what stands after the "?"

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?))?b?", re.IGNORECASE)
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(text)
    number, unit, binary = match.groups(default="")
    size = int(float(number) * (1024 if binary else 1000) ** _POWERS[unit.lower()])
    if size < SMALLEST_MAX_BYTES:
        raise ValueError(text)
    return size


def _ttl(text: str) -> int | None:
    seconds = durations.validate_or_never("ttl", text)
    # Redis and Memcached count whole seconds.
    if seconds is not None and (seconds < 1 or seconds % 1):
        raise ValueError(text)
    return None if seconds is None else int(seconds)


def _dtype(text: str) -> str:
    if text not in DTYPES:
        raise ValueError(text)
    return text


@dataclass(frozen=True, slots=True)
class _Option:
    field: str
    read: Callable[[str], Any]
    wanted: str


_DTYPE: Final = _Option("dtype", _dtype, " or ".join(DTYPES))
_FILE_OPTIONS: Final = {
    "dtype": _DTYPE,
    "max_bytes": _Option("max_bytes", _size, "a size of at least 64MB, such as 20GB"),
}
_SERVER_OPTIONS: Final = {
    "dtype": _DTYPE,
    "ttl": _Option(
        "ttl_s", _ttl, f"a whole number of seconds, at least 1 s: {durations.FORMS_OR_NEVER}"
    ),
}


def _options(parts: SplitResult, url: str, known: Mapping[str, _Option]) -> dict[str, Any]:
    if parts.fragment:
        raise SettingError(f"{_told(url)} holds a #, which must be written %23.")
    read: dict[str, Any] = {}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        option = known.get(name)
        if option is None or option.field in read:
            wrong = "stands there twice" if option else "is no option of this kind of cache"
            raise SettingError(f"{_told(url)}: {name} {wrong}; it takes {' and '.join(known)}.")
        try:
            read[option.field] = option.read(text)
        except ValueError as error:
            raise SettingError(
                f"{_told(url)}: {name}={text!r} cannot be used; give {option.wanted}."
            ) from error
    return read

"""URLs of caches. Parsing one opens no file or connection and imports no client library."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from emberd import durations, env
from emberd.errors import SettingError

SQLITE: Final = "sqlite"
MEMCACHED: Final = "memcached"

_PORTS: Final = {"redis": 6379, "rediss": 6379, MEMCACHED: 11211}
_FORMS: Final = (
    "sqlite, sqlite:///absolute/path.db, redis://host:port/0, rediss://host:port/0 or "
    "memcached://host:port"
)

DEFAULT_MAX_BYTES: Final = 10 * 1000**3
SMALLEST_MAX_BYTES: Final = 64 * 1000**2
"""A smaller limit would be less than what one transaction writes and its log holds."""

DTYPES: Final = ("float32", "float16")


@dataclass(frozen=True, slots=True)
class CacheUrl:
    """A parsed cache URL.

    Attributes:
        url: As it was given.
        scheme: ``sqlite``, ``redis``, ``rediss`` or ``memcached``.
        path: The file; empty for the one in emberd's home.
        servers: Hosts and ports.
        database: Number of the database in Redis.
        dtype: Number format of the stored vectors.
        max_bytes: Size limit of a file.
        ttl_s: Seconds after which a server removes an entry; None for no limit.
    """

    url: str
    scheme: str
    path: str = ""
    servers: tuple[tuple[str, int], ...] = ()
    database: int = 0
    dtype: str = "float32"
    max_bytes: int = DEFAULT_MAX_BYTES
    ttl_s: int | None = None


def parse(url: str) -> CacheUrl:
    """Return a cache URL in its parts.

    Raises:
        SettingError: It is invalid; the message says why, and what is valid.
    """
    if not isinstance(url, str) or not url.strip():
        raise SettingError(f"cache={url!r} must be a URL: {_FORMS}.")
    if "@" in url and not url.startswith((f"{SQLITE}:///", f"{SQLITE}?")):
        # Checked first, because the other messages repeat the URL.
        raise SettingError(
            f"The cache URL contains a user or a password, which would appear in logs and pickles. "
            f"Remove the part before the @, and set {env.CACHE_USER} and {env.CACHE_PASSWORD}."
        )
    bare, mark, query = url.strip().partition("?")
    try:
        # Without the slashes, urlsplit would take "sqlite" for a path.
        parts = urlsplit(f"{bare}://{mark}{query}" if bare == SQLITE else url.strip())
    except ValueError as error:
        raise SettingError(f"{_shown(url)} is not a valid URL ({error}): use {_FORMS}.") from error
    if parts.scheme == SQLITE:
        options = _options(parts, url, "dtype", "max_bytes")
        return CacheUrl(url, SQLITE, path=_path(parts, url), **options)
    if parts.scheme not in _PORTS:
        raise SettingError(f"{_shown(url)} is not a known kind of cache: use {_FORMS}.")
    servers, database = parts.netloc.split(","), parts.path.strip("/")
    if parts.scheme == MEMCACHED and database:
        raise SettingError(f"{_shown(url)}: Memcached has no databases; remove {parts.path!r}.")
    if not database.isascii() or not (database or "0").isdigit():
        raise SettingError(f"{_shown(url)}: {database!r} is not a database number (use /0).")
    if parts.scheme != MEMCACHED and len(servers) > 1:
        raise SettingError(f"{_shown(url)} has {len(servers)} servers: use one for Redis.")
    options = _options(parts, url, "dtype", "ttl")
    return CacheUrl(
        url,
        parts.scheme,
        servers=tuple(_server(name, _PORTS[parts.scheme], url) for name in servers),
        database=int(database or 0),
        ttl_s=options.pop("ttl", None),
        **options,
    )


def _shown(url: str) -> str:
    """Return a URL for messages, without its options, which may contain a secret."""
    return f"cache={re.split('[?#]', url, maxsplit=1)[0]!r}"


def _path(parts: SplitResult, url: str) -> str:
    path = unquote(parts.path)
    is_file = os.path.isabs(path) and not path.endswith("/") and "\0" not in path
    if parts.netloc or (path and not is_file):
        raise SettingError(
            f"{_shown(url)} is not the absolute path of a file: use sqlite:///absolute/path.db, "
            f"with three slashes, or just sqlite for the file in emberd's home."
        )
    return path


def _server(name: str, default_port: int, url: str) -> tuple[str, int]:
    wrong = f"{_shown(url)}: {name!r} is not a host and port; use host:port, or [address]:port."
    try:
        parts = urlsplit(f"//{name}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise SettingError(wrong) from error
    if not host or port == 0 or any(character.isspace() for character in name):
        raise SettingError(wrong)
    return host, port or default_port


# ---------------------------------------------------------------- options after the "?"

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?))?b?", re.IGNORECASE)
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(text)
    number, unit, binary = match.groups(default="")
    size = float(number) * (1024 if binary else 1000) ** _POWERS[unit.lower()]
    if not SMALLEST_MAX_BYTES <= size < math.inf:
        raise ValueError(text)
    return int(size)


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


# Name -> how its value is read, and what is valid.
_OPTIONS: Final[dict[str, tuple[Callable[[str], Any], str]]] = {
    "dtype": (_dtype, " or ".join(DTYPES)),
    "max_bytes": (_size, "a size of at least 64MB, such as 20GB"),
    "ttl": (_ttl, f"a whole number of seconds, at least 1 s: {durations.FORMS_OR_NEVER}"),
}


def _options(parts: SplitResult, url: str, *known: str) -> dict[str, Any]:
    if parts.fragment:
        raise SettingError(f"{_shown(url)} contains a #, which must be written as %23.")
    values: dict[str, Any] = {}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        if name not in known or name in values:
            wrong = "is given twice" if name in known else "is not an option of this kind of cache"
            raise SettingError(f"{_shown(url)}: {name} {wrong}; it takes {' and '.join(known)}.")
        read, wanted = _OPTIONS[name]
        try:
            values[name] = read(text)
        except ValueError as error:
            raise SettingError(
                f"{_shown(url)}: {name}={text!r} is invalid; use {wanted}."
            ) from error
    return values

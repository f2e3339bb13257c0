"""The store that a location names: a folder, or a kind and a URL."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from emberd import env
from emberd.errors import SettingError
from emberd.stores.rows import KINDS, RowStore
from emberd.system import redaction

# What a folder of each contains.
_MARKS: Final = {"chroma": "chroma.sqlite3", "qdrant": "meta.json", "lancedb": "*.lance"}


def shown(location: str) -> str:
    """Return a location without what may be secret in its URL."""
    kind, colon, place = location.partition(":")
    if colon and kind in KINDS:
        return f"{kind}:{redaction.origin(place)}" if "://" in place else location
    return redaction.origin(location) if "://" in location else location


def open_store(location: str) -> RowStore:
    """Return the store at ``location``.

    Args:
        location: A folder; or the kind of the store, a colon, and a folder or a URL:
            ``qdrant:http://localhost:6333``.

    Raises:
        SettingError: There is no store, its kind is unknown, or its client is not installed.
    """
    kind, colon, place = location.partition(":")
    if not colon or kind not in KINDS:
        kind, place = "", location
    is_url = "://" in place
    if not is_url:
        # A client would create a store in a folder that has none.
        found = [each for each, mark in _MARKS.items() if any(Path(place).glob(mark))]
        kind = kind if kind in found else "" if kind else next(iter(found), "")
    if not kind:
        raise SettingError(
            f"{shown(location)} is not a folder of Chroma, Qdrant or LanceDB. Check the path; for "
            f"a server, write its kind before the URL: qdrant:http://localhost:6333, "
            f"chroma:http://localhost:8000."
        )
    made = KINDS[kind]
    try:
        package = importlib.import_module(made.package)
    except ImportError as error:
        name = made.package.replace("_", "-")
        raise SettingError(
            f"{shown(location)} needs {name}, which cannot be imported here ({error}). Run: pip "
            f"install {name}"
        ) from error
    where = place if is_url else str(Path(place).resolve())
    key = env.text(env.STORE_API_KEY)
    if kind == "lancedb":
        client = package.connect(where, api_key=key if is_url else None)
    elif kind == "qdrant":
        client = package.QdrantClient(url=where, api_key=key) if is_url else None
        client = client or package.QdrantClient(path=where)
    elif is_url:
        parts = urlsplit(where)
        if parts.path.strip("/") or parts.query or parts.username or parts.password:
            raise SettingError(
                f"The URL of {shown(location)} has a user, a path or a query, which are not used "
                f"for Chroma. Pass only scheme, host and port, and the key as {env.STORE_API_KEY}."
            )
        secure = parts.scheme == "https"
        client = package.HttpClient(
            parts.hostname,
            parts.port or (443 if secure else 8000),
            ssl=secure,
            headers={"Authorization": f"Bearer {key}"} if key else None,
        )
    else:
        client = package.PersistentClient(where)
    return made(client, shown(f"{kind}:{where}"))

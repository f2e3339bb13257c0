"""Clients of the user's own that were handed in."""

from __future__ import annotations

from typing import Any

from emberd.endpoint import root_url
from emberd.errors import SettingError


def one_place(base_url: str | None, *clients: Any) -> str | None:
    """Return the one address that all of these lead to; None when none is given.

    Raises:
        SettingError: They lead to several.
    """
    given = [client.base_url for client in clients if client is not None]
    places = {root_url(str(url)) for url in (base_url, *given) if url is not None}
    if given and len(places) > 1:
        raise SettingError(
            f"base_url, client and async_client lead to different servers: "
            f"{', '.join(sorted(places))}. Give them the same base_url, or make one Embedder each."
        )
    return str(given[0]) if given else base_url


def refuse_without(name: str, wanted: Any, other: Any) -> None:
    """Do nothing if a method may work with the clients that there are.

    Args:
        name: The argument for the client that it needs.
        wanted: That client, or None.
        other: The one of the other kind, or None.

    Raises:
        SettingError: Only the other one was handed in, whose server may need what only it has,
            such as a certificate.
    """
    if wanted is None and other is not None:
        raise SettingError(
            f"This method needs {name}=, and only the client of the other kind was handed in. "
            f"Hand in both, or call the methods of the other kind."
        )

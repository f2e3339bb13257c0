"""Whether what a server says it serves is the wanted model, by name or by the files it names."""

from __future__ import annotations

import os
import re
from typing import Final

from emberd import catalog, model_files
from emberd.errors import SettingError

# Where the hub's libraries keep what they fetched: a path that names the model after all.
_FETCHED: Final = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/[^/]+/?$")


def is_model(wanted: str, served: object) -> bool:
    """Return whether ``served`` names ``wanted``: on the hub, or as a folder named like it."""
    if not isinstance(served, str):
        return False
    fetched = _FETCHED.search(served)
    name = "/".join(fetched.groups()) if fetched else served
    return catalog.names(wanted, name) or catalog.names(name, wanted)


def holds_model(wanted: str, path: object) -> bool | None:
    """Return whether the folder ``path`` of this machine holds the files of the folder ``wanted``.

    Names say little of folders: every training run writes one called ``checkpoint-500``, and a
    link called ``current`` may lead to any of them.

    Returns:
        None where it cannot be seen: one of them is no folder here, or cannot be read.
    """
    if not isinstance(path, str) or not os.path.isabs(path):
        return None
    try:
        served = model_files.content_hash(path)
        mine = model_files.content_hash(wanted)
    except SettingError:
        return None
    return None if served is None or mine is None else served == mine

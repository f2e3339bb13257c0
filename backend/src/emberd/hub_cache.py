"""The only reader of the Hugging Face hub's cache on this machine.

The layout and the variables are those of huggingface_hub, which is not imported: it is installed
in the engines' environments only. The module needs the standard library only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from emberd.model_files import CONFIG

DEFAULT_REVISION: Final = "main"

_CACHE_VARIABLES: Final = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")


def root(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the cache.

    As in ``huggingface_hub.constants``: HF_HUB_CACHE, else HUGGINGFACE_HUB_CACHE, else ``hub``
    below ``home``. A variable that is empty counts as unset, unlike there.
    """
    for name in _CACHE_VARIABLES:
        if environ.get(name):
            return _expanded(environ[name])
    return home(environ) / "hub"


def home(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder that holds the hub's cache and token by default.

    HF_HOME, else ``huggingface`` below XDG_CACHE_HOME, else ``~/.cache/huggingface``.
    """
    base = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(environ.get("HF_HOME") or os.path.join(base, "huggingface"))


def token_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the file in which the hub's client keeps the user's token."""
    given = environ.get("HF_TOKEN_PATH")
    return _expanded(given) if given else home(environ) / "token"


def model_folder(model: str) -> Path:
    """Return the folder of the cache for all revisions of a model; it need not exist."""
    return root() / f"models--{model.replace('/', '--')}"


def snapshot(model: str, revision: str | None) -> Path | None:
    """Return the folder that holds one revision of a model; None if there is none.

    Files may be missing there: libraries download only what they read.

    Args:
        model: Its name on the hub.
        revision: Commit, branch or tag; None for the default branch.
    """
    folder = model_folder(model)
    try:
        commit = (folder / "refs" / (revision or DEFAULT_REVISION)).read_text("utf-8").strip()
    except (OSError, ValueError):
        commit = revision or DEFAULT_REVISION  # a commit has no reference file
    found = folder / "snapshots" / commit
    return found if os.path.isdir(found) else None


def is_downloaded(model: str) -> bool:
    """Return whether some revision of a model appears to be in the cache, with no download open."""
    folder = model_folder(model)
    has_config = any(folder.glob(f"snapshots/*/{CONFIG}"))
    return has_config and not any(folder.glob("blobs/*.incomplete"))


def _expanded(path: str) -> Path:
    return Path(os.path.expandvars(os.path.expanduser(path)))

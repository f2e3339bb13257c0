"""The Hugging Face hub: what of a model lies in its cache here, and whether the rest can be had.

The cache is read as huggingface_hub lays it out; that library is in the engines' environments and
not in this one. No token is ever sent.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from emberd import hub_cache, probe
from emberd.doctor import weights
from emberd.system.redaction import host

TIMEOUT_S: Final = 3.0
OFFLINE: Final = "HF_HUB_OFFLINE"
_ENDPOINT: Final = "https://huggingface.co"
_YES: Final = ("1", "ON", "TRUE", "YES")
_TOKENS: Final = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_MAIN: Final = "main"
_NAMED_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)([BM])(?![A-Za-z])")
_BF16_BYTES: Final = 2
_UNITS: Final = {"B": 1_000_000_000, "M": 1_000_000}
_WANTED: Final = (".json", ".safetensors", ".txt", ".model")
_REDIRECTS: Final = range(300, 400)


@dataclass(frozen=True, slots=True)
class Cached:
    """What the cache holds of a model.

    Attributes:
        folder: The snapshot; None where there is none of the revision that is wanted.
        lacking: What the snapshot lacks; empty for nothing.
    """

    folder: Path | None
    lacking: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether nothing has to be downloaded."""
        return self.folder is not None and not self.lacking


@dataclass(frozen=True, slots=True)
class Answer:
    """What the hub says of a model.

    Attributes:
        status: The HTTP status; None when the hub did not answer.
        gated: It is given only to those who were let in.
        bytes: What has to be downloaded; None when the hub does not say.
    """

    status: int | None
    gated: bool = False
    bytes: int | None = None

    @property
    def is_there(self) -> bool:
        """Whether the hub knows such a model; one that was renamed is known too."""
        return self.status == HTTPStatus.OK or self.status in _REDIRECTS


def cached(model: str, revision: str | None) -> Cached:
    """Return what the cache holds of a model.

    Raises:
        OSError: The cache cannot be read.
    """
    folder = hub_cache.snapshot(model, revision)
    if folder is None:
        return Cached(None)
    return Cached(folder, tuple(weights.lacking(folder)))


def ask(model: str, revision: str | None) -> Answer:
    """Return what the hub says of a model, after a few seconds at most."""
    path = f"/api/models/{quote(model)}/revision/{quote(revision or _MAIN, safe='')}?blobs=true"
    try:
        reply = probe.fetch(endpoint(), path, None, None, TIMEOUT_S)
    except probe.NO_ANSWER:
        return Answer(None)
    told: Any = reply.json()
    if not isinstance(told, dict):
        return Answer(reply.status)
    return Answer(reply.status, bool(told.get("gated")), _sizes(told.get("siblings")))


def endpoint(environ: Mapping[str, str] = os.environ) -> str:
    """Return the URL of the hub, without a password that may stand in it."""
    given = environ.get("HF_ENDPOINT", "").rstrip("/")
    scheme, separator, _ = given.partition("://")
    return f"{scheme}://{host(given)}" if separator else _ENDPOINT


def is_offline(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether the user forbids downloads."""
    return any(environ.get(n, "").upper() in _YES for n in (OFFLINE, "TRANSFORMERS_OFFLINE"))


def has_token(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether a token for the hub is there; what it is, is nobody's business."""
    if any(environ.get(name) for name in _TOKENS):
        return True
    return hub_cache.token_path(environ).is_file()


def weights_bytes(model: str) -> int | None:
    """Return about what a model's weights take, by the size in its name; None when it has none."""
    found = _NAMED_SIZE.findall(model)
    if not found:
        return None
    number, unit = found[-1]
    return int(float(number) * _UNITS[unit] * _BF16_BYTES)


def _sizes(siblings: Any) -> int | None:
    if not isinstance(siblings, list):
        return None
    sizes = [
        entry["size"]
        for entry in siblings
        if isinstance(entry, dict)
        and str(entry.get("rfilename", "")).endswith(_WANTED)
        and isinstance(entry.get("size"), int)
    ]
    return sum(sizes) or None

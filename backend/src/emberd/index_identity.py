"""What an index was made with, as a short text to keep beside it.

The form is that of a URI::

    emberd:Qwen/Qwen3-Embedding-4B?dimensions=1024&query=1f0c2d3e4a5b6978&document=bare

A pinned revision, or for a folder what stands for its files, comes in between. A template is its
hash, or ``bare`` where texts stay as they are.
"""

from __future__ import annotations

import hashlib
from pathlib import PurePath
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode

from emberd.errors import IdentityError
from emberd.prompts import BARE
from emberd.settings import ServerSpec, Settings

_SCHEME: Final = "emberd:"
_SHOWN_DIGITS: Final = 16
_MODEL: Final = "model"


def identity(settings: Settings, spec: ServerSpec) -> str:
    """Return what decides the vectors of a text: model, revision, dimensions, instructions.

    Args:
        settings: The settings of an embedder.
        spec: The server that it wants.

    Returns:
        A text in the form above. Two objects with the same one give vectors that belong into one
        index, whatever server they use, on whatever machine.
    """
    # A folder is known by its files: where it lies differs from machine to machine.
    model = PurePath(spec.model).name if spec.content else settings.known.name
    parts = {
        "revision": spec.revision,
        "content": spec.content,
        "dimensions": settings.dimensions or settings.known.dimensions or "native",
        "query": _short(settings.query_template),
        "document": _short(settings.document_template),
    }
    told = urlencode({name: part for name, part in parts.items() if part is not None})
    return f"{_SCHEME}{quote(model)}?{told}"


def native(settings: Settings, spec: ServerSpec) -> str:
    """Return what decides the native vector of a text in its template, as a text for caches."""
    # As above: a folder is known by its files, and the same model on the hub by any spelling.
    model = PurePath(spec.model).name if spec.content else settings.known.name
    return urlencode({**spec.identity, _MODEL: model})


def check(kept: str, now: str, settings: Settings) -> None:
    """Do nothing if an index with the identity ``kept`` goes with the object of ``settings``.

    Args:
        kept: What was kept beside the index; white space around it does not count.
        now: The identity of the object.
        settings: Its settings, for the error.

    Raises:
        IdentityError: It does not, or ``kept`` is no identity.
    """
    if not isinstance(kept, str) or not kept.strip().startswith(_SCHEME):
        raise IdentityError(
            f"{kept!r} is no identity of emberd, which would look like {now!r}. Keep that of the "
            f"object that made the index, and give it here.",
            kept=str(kept),
            now=now,
        )
    before, after = _parts(kept.strip()), _parts(now)
    if before == after:
        return
    names = [name for name in before | after if before.get(name) != after.get(name)]
    # Of a template only the hash was kept; of this side's there is more to tell.
    shown = after | {"query": repr(settings.query_template)}
    shown |= {"document": repr(settings.document_template)}
    told = "; ".join(f"{name} {before.get(name)} there, {shown.get(name)} here" for name in names)
    raise IdentityError(
        f"The index was made with {kept!r}, and this object is {now!r}: {told}. {_advice(names)}",
        kept=kept,
        now=now,
    )


def _short(template: str) -> str:
    if template == BARE:
        return "bare"
    return hashlib.sha256(template.encode()).hexdigest()[:_SHOWN_DIGITS]


def _parts(identity: str) -> dict[str, str]:
    model, _, rest = identity.removeprefix(_SCHEME).partition("?")
    return {_MODEL: model, **dict(parse_qsl(rest))}


def _advice(names: list[str]) -> str:
    advice = "Make the object with the settings of the index, or embed all texts again."
    if names != ["query"]:
        return advice
    return (
        f"{advice} Only queries differ: if you mean to ask this index another kind of question, "
        f"keep the identity of this object beside it."
    )

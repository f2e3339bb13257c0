"""What an index was made with, as a short text to store with it.

The form is that of a URI::

    emberd:Qwen/Qwen3-Embedding-4B?dimensions=1024&query=1f0c2d3e4a5b6978&document=bare

A pinned revision, or the content hash of a folder, and a quantisation come before the dimensions. A
template is shown as its hash, or as ``bare`` if texts are embedded unchanged.
"""

from __future__ import annotations

import hashlib
from pathlib import PurePath
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlencode

from emberd import catalog
from emberd.errors import IdentityError
from emberd.prompts import BARE
from emberd.settings import ServerSpec, Settings

_SCHEME: Final = "emberd:"
_MODEL: Final = "model"
_NATIVE: Final = "native"


def identity(settings: Settings, spec: ServerSpec) -> str:
    """Return what determines the vectors of a text: model, precision, dimensions, templates.

    Args:
        settings: The settings of an embedder.
        spec: The server that it uses.

    Returns:
        A text in the form above. Vectors of two objects with equal identities can share an index,
        on any server and machine.
    """
    # A folder is identified by its files, because its path differs between machines.
    model = PurePath(spec.model).name if spec.content else settings.known.name
    # Not from the hub's cache: the identity must not depend on which files are on this machine.
    described = settings.known if spec.content else catalog.lookup(spec.model)
    native_dimensions = described.dimensions
    parts = {
        "revision": spec.revision,
        "content": spec.content,
        "quantization": spec.quantization,
        "dimensions": settings.dimensions or native_dimensions or _NATIVE,
        "query": _short(settings.query_template),
        "document": _short(settings.document_template),
    }
    query = urlencode({name: part for name, part in parts.items() if part is not None})
    return f"{_SCHEME}{quote(model)}?{query}"


def native(settings: Settings, spec: ServerSpec) -> str:
    """Return what determines the native vector of a text in its template, for keys of caches."""
    # As above for a folder; and every spelling of a name on the hub is one model.
    model = PurePath(spec.model).name if spec.content else settings.known.name
    return urlencode({**spec.identity, _MODEL: model})


def check(kept: str, now: str, settings: Settings) -> None:
    """Raise unless an index with the identity ``kept`` fits an object with ``settings``.

    Args:
        kept: The identity stored with the index; surrounding white space is ignored.
        now: The identity of the object.
        settings: Its settings, for the error.

    Raises:
        IdentityError: It does not fit, or ``kept`` is not an identity.
    """
    if not isinstance(kept, str) or not kept.strip().startswith(_SCHEME):
        raise IdentityError(
            f"{kept!r} is not an identity of emberd, such as {now!r}. Store the identity of the "
            f"object that makes the index, and pass it here.",
            kept=str(kept),
            now=now,
        )
    before, after = _parts(kept.strip()), _parts(now)
    if before == after:
        return
    names = [name for name in before | after if before.get(name) != after.get(name)]
    # The index has only hashes of its templates; of this object the templates can be shown.
    shown = after | {"query": repr(settings.query_template)}
    shown |= {"document": repr(settings.document_template)}
    differences = "; ".join(f"{n} {before.get(n)} there, {shown.get(n)} here" for n in names)
    advice = "Use the settings of the index, or embed all texts again."
    if names == ["query"]:
        advice += (
            " Only queries differ: to use this index with another query instruction, store the "
            "identity of this object with it."
        )
    raise IdentityError(
        f"The index was made with {kept!r}, but this object is {now!r}: {differences}. {advice}",
        kept=kept,
        now=now,
    )


def _short(template: str) -> str:
    if template == BARE:
        return "bare"
    return hashlib.sha256(template.encode()).hexdigest()[:16]


def _parts(identity: str) -> dict[str, str]:
    model, _, rest = identity.removeprefix(_SCHEME).partition("?")
    parts = {_MODEL: model, **dict(parse_qsl(rest))}
    known = catalog.find(unquote(model))
    if parts.get("dimensions") == _NATIVE and known is not None and known.dimensions is not None:
        # The index was made before the model came into the catalog.
        parts["dimensions"] = str(known.dimensions)
    return parts

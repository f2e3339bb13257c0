"""What an index was made with, as a short text to store with it.

The form is that of a URI::

    emberd:Qwen/Qwen3-Embedding-4B?dimensions=1024&query=1f0c2d3e4a5b6978&document=bare

A pinned revision, or the content hash of a folder, and a quantisation come before the dimensions. A
template is shown as its hash, or as ``bare`` if texts are embedded unchanged.

``emberd reindex`` adds up to two notes, which do not change what fits: ``#text=NAME`` for the field
of the texts, if one was named, and ``#reindexing`` at the end of an index that it is filling.
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
_INCOMPLETE: Final = "#reindexing"
_TEXT_FIELD: Final = "#text="


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


def with_text_field(identity: str, name: str | None) -> str:
    """Return ``identity`` with the field of the texts, if one was named."""
    return identity if name is None else f"{identity}{_TEXT_FIELD}{quote(name, safe='')}"


def text_field(kept: str) -> str | None:
    """Return the field of the texts; None if none was named."""
    _, mark, name = kept.strip().removesuffix(_INCOMPLETE).partition(_TEXT_FIELD)
    return unquote(name) if mark else None


def incomplete(identity: str) -> str:
    """Return ``identity`` with the mark of an index that is being filled."""
    return identity + _INCOMPLETE


def is_incomplete(kept: str) -> bool:
    """Return whether ``kept`` has the mark of an index that is being filled."""
    return kept.strip().endswith(_INCOMPLETE)


def are_equal(kept: str, now: str) -> bool:
    """Return whether two identities allow the same vectors, complete or not."""
    return _parts(kept) == _parts(now)


def check(
    kept: str,
    now: str,
    settings: Settings,
    *,
    index: str = "The index",
    may_be_incomplete: bool = False,
    advice: str = "",
) -> None:
    """Raise unless an index with the identity ``kept`` fits an object with ``settings``.

    Args:
        kept: The identity stored with the index; surrounding white space is ignored.
        now: The identity of the object.
        settings: Its settings, for the error.
        index: Which index, at the beginning of a sentence.
        may_be_incomplete: Whether the caller fills the index.
        advice: What else may be done about an identity that does not fit.

    Raises:
        IdentityError: It does not fit, is incomplete, or ``kept`` is not an identity.
    """
    if not isinstance(kept, str) or not kept.strip().startswith(_SCHEME):
        raise IdentityError(
            f"{index} has {kept!r} as its identity, which is not an identity of emberd, such as "
            f"{now!r}. Store the identity of the object that makes the index.",
            kept=str(kept),
            now=now,
        )
    further = f" {advice}" if advice else ""
    if is_incomplete(kept) and not may_be_incomplete:
        raise IdentityError(
            f"{index} is incomplete: `emberd reindex` has not finished it. Wait for that run, or "
            f"run the same command again, which continues.{further}",
            kept=kept,
            now=now,
        )
    names = _different(kept, now)
    if not names:
        return
    steps = (
        f"Use the model and the settings of the index, or embed its texts again with `emberd "
        f"reindex` (docs/vector-stores.md).{further}"
    )
    if names == ["query"]:
        steps += (
            " Only queries differ: to use this index with another query instruction, store the "
            "identity of this object with it."
        )
    raise IdentityError(
        f"{index} has the identity {kept!r}, but this object has {now!r}: "
        f"{differences(kept, now, settings)}. {steps}",
        kept=kept,
        now=now,
    )


def differences(kept: str, now: str, settings: Settings) -> str:
    """Return in which parts two identities differ, with both values; empty if they are equal.

    Args:
        kept: One identity.
        now: The identity of an object with ``settings``.
        settings: The settings, which have the templates that an identity has only as hashes.
    """
    there, here = _parts(kept), _parts(now)
    here |= {"query": repr(settings.query_template), "document": repr(settings.document_template)}
    names = _different(kept, now)
    return "; ".join(f"{name} {there.get(name)} there, {here.get(name)} here" for name in names)


def _different(kept: str, now: str) -> list[str]:
    there, here = _parts(kept), _parts(now)
    return [name for name in there | here if there.get(name) != here.get(name)]


def _short(template: str) -> str:
    if template == BARE:
        return "bare"
    return hashlib.sha256(template.encode()).hexdigest()[:16]


def _parts(identity: str) -> dict[str, str]:
    whole, _, _ = identity.strip().partition("#")
    model, _, rest = whole.removeprefix(_SCHEME).partition("?")
    parts = {_MODEL: model, **dict(parse_qsl(rest))}
    known = catalog.find(unquote(model))
    if parts.get("dimensions") == _NATIVE and known is not None and known.dimensions is not None:
        # The index was made before the model came into the catalog.
        parts["dimensions"] = str(known.dimensions)
    return parts

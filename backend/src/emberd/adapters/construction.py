"""What the adapters share: embedders from arguments, and settings that are kept with an index."""

from __future__ import annotations

import inspect
import os
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from emberd.embedder import Embedder
from emberd.errors import SettingError
from emberd.prompts import BARE

IDENTITY: Final = "identity"
"""Where ``saved`` puts the identity of an embedder."""
# Not kept by other libraries: a key, and objects that only this process has.
_OBJECTS: Final = frozenset({"manager", "client", "async_client"})
_NEVER_SAVED: Final = _OBJECTS | {"api_key"}
_MAY_BE_NONE: Final = ("revision", "quantization", "dimensions")
_ARGUMENTS: Final = frozenset(inspect.signature(Embedder).parameters)
_MOST_SHARED: Final = 16

# By settings and identity. Without a lock, which a fork could leave locked: each step is atomic.
_restored: OrderedDict[tuple[Any, str], Embedder] = OrderedDict()


def embedder_from(
    model: str | os.PathLike[str] | Embedder | None, settings: Mapping[str, Any], owner: str
) -> Embedder:
    """Return the embedder that an adapter is given, or one with these settings.

    Args:
        model: An ``Embedder``; or a model, None for the default.
        settings: Arguments of ``Embedder``.
        owner: Name of the adapter, for errors.

    Raises:
        SettingError: An argument is unknown or invalid, or given together with an ``Embedder``.
    """
    if unknown := sorted(settings.keys() - _ARGUMENTS):
        raise SettingError(
            f"{owner} has no argument {unknown[0]!r}, and neither has emberd.Embedder. Leave it "
            f"out: the server has the model."
        )
    if not isinstance(model, Embedder):
        return Embedder(model, **settings)
    if settings:
        raise SettingError(
            f"{min(settings)} is given together with an Embedder, which has all settings. "
            f"Give it to the Embedder."
        )
    return model


def saved(embedder: Embedder, given: Mapping[str, Any] = {}) -> dict[str, Any]:
    """Return what determines the vectors, with which ``restored`` makes such an embedder again.

    Defaults and variables of the environment are resolved, so that another process, or another
    release, does not get other vectors. The key of a server is left out.

    Args:
        embedder: The embedder.
        given: Arguments of it that do not determine vectors and are kept too, such as ``base_url``.

    Returns:
        Values that JSON can hold.
    """
    settings, info = embedder.settings, embedder.model_info
    kept = storable(given)
    resolved = {
        "model": settings.model,
        "revision": settings.revision,
        "quantization": settings.quantization,
        "dimensions": info.dimensions if settings.dimensions is None else settings.dimensions,
        "query_instruction": info.query_template,
        "document_instruction": info.document_template,
        "truncate": settings.truncate,
        IDENTITY: embedder.identity,
    }
    kept.pop("symmetric", None)  # the templates say it
    return {**kept, **{name: value for name, value in resolved.items() if value is not None}}


def storable(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments without secrets, and without objects of this process."""
    return {name: value for name, value in given.items() if name not in _NEVER_SAVED}


def restored(kept: Mapping[str, Any]) -> Embedder:
    """Return the embedder that ``saved`` described, whatever the environment says.

    Only its key, and settings that do not determine vectors and are not kept, are those of the
    environment. Equal ones are one object in this process, whose server is verified once: LanceDB
    makes its function again whenever texts are added.

    Raises:
        SettingError: What is kept is not from ``saved``.
        IdentityError: Here, its settings give other vectors: a folder holds another model now.
    """
    values = dict(kept)
    identity, model = values.pop(IDENTITY, None), values.pop("model", None)
    values = {"symmetric": False, "truncate": False, **values}
    embedder = embedder_from(model, values, "What is kept with the index")
    # The constructor takes None from the environment.
    embedder = embedder.replace(**{name: values.get(name) for name in _MAY_BE_NONE})
    if identity is not None:
        embedder.check_identity(identity)
    if values.keys() & _OBJECTS:
        return embedder
    # The identity has the hash of a folder's files, which may have changed.
    embedder = _restored.setdefault((embedder.settings, embedder.identity), embedder)
    while len(_restored) > _MOST_SHARED:
        with suppress(KeyError):  # another thread has removed the last one
            _restored.popitem(last=False)
    return embedder


def prefix_template(prompt: Any, name: str) -> str:
    """Return the template that puts ``prompt`` before a text.

    Args:
        prompt: What comes before a text.
        name: What the caller calls it, for errors.

    Raises:
        SettingError: It is no such text.
    """
    if not isinstance(prompt, str):
        raise SettingError(f"{name}={prompt!r} must be a string.")
    if BARE in prompt:
        raise SettingError(
            f"{name}={prompt!r} contains {BARE}, which sentence-transformers treats literally and "
            f"emberd as a placeholder. Leave it out: the text follows the prompt."
        )
    return prompt + BARE

"""The embedder for the arguments of ``EmberdEmbedding``, and the values of its fields."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Final

from llama_index.core.bridge.pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import InitErrorDetails

from emberd import Embedder, SettingError, Settings

# Setting of emberd -> field, where LlamaIndex has its own name.
_RENAMED: Final = {"model": "model_name", "document_instruction": "text_instruction"}
# embed_batch_size is the size of LlamaIndex's slices, and progress is an argument of the calls.
_NOT_FIELDS: Final = {"batch_size", "show_progress"}

# Field of another class, or setting of emberd -> field of this class.
_ELSEWHERE: Final = {**_RENAMED, "api_base": "base_url", "batch_size": "embed_batch_size"}
EMBEDDER: Final = "embedder"  # replaces all settings, see from_embedder

# Field -> setting of emberd.
SETTING_OF: Final = {
    _RENAMED.get(setting.name, setting.name): setting.name
    for setting in fields(Settings)
    if setting.name not in _NOT_FIELDS
}


def embedder_of(owner: type[BaseModel], base: type[BaseModel], data: dict[str, Any]) -> Embedder:
    """Return the embedder that a constructor is asked for, or was given.

    Args:
        owner: The class of the object.
        base: ``EmberdEmbedding``; a class derived from it may declare its own defaults.
        data: The arguments; those that are not fields are removed.

    Raises:
        SettingError: A field does not exist, or a value is invalid.
    """
    identity, given = data.pop("identity", None), data.pop(EMBEDDER, None)
    if unknown := sorted(set(data) - set(owner.model_fields)):
        name = unknown[0]
        hint = f"; it is called {_ELSEWHERE[name]} here" if name in _ELSEWHERE else ""
        raise SettingError(
            f"{owner.__name__} has no field {name!r}{hint}. "
            f"It has: {', '.join(sorted(owner.model_fields))}."
        )
    embedder = _checked(given, data) if given is not None else _made(owner, base, data)
    # Of a to_dict(): equal settings mean another model if the files of a folder have changed.
    if identity is not None and identity != (now := identity_of(embedder)):
        raise SettingError(
            f"The dictionary has identity={identity!r}, and its settings give "
            f"{now!r} here. To change settings, use model_copy(update=...); a folder "
            f"that contains another model than before needs a new object, and all texts embedded "
            f"again."
        )
    return embedder


def identity_of(embedder: Embedder) -> str:
    """Return the identity of an embedder, without fetching what describes its model.

    Raises:
        InstructionError: The templates are not known without that.
    """
    _ = embedder.settings.query_template, embedder.settings.document_template
    return embedder.identity


def _checked(embedder: Any, data: Mapping[str, Any]) -> Embedder:
    if not isinstance(embedder, Embedder):
        raise SettingError(f"{embedder!r} is not an emberd.Embedder.")
    if settings := sorted(name for name in data if name in SETTING_OF):
        raise SettingError(
            f"{settings[0]} is given together with an Embedder, which has all settings. Give it to "
            f"the Embedder, or use model_copy(update=...) afterwards."
        )
    return embedder


def _made(owner: type[BaseModel], base: type[BaseModel], data: Mapping[str, Any]) -> Embedder:
    """Return an embedder with the given settings, and defaults that a subclass declares."""
    values = {
        name: owner.model_fields[name].get_default(call_default_factory=True)
        for kind in owner.__mro__[: owner.__mro__.index(base)]
        for name in inspect.get_annotations(kind)
        if name in SETTING_OF and not owner.model_fields[name].is_required()
    }
    # None counts as not given, except that an idle timeout of None means never.
    values |= {
        name: value
        for name, value in data.items()
        if name in SETTING_OF and (value is not None or name == "idle_timeout")
    }
    return Embedder(**{SETTING_OF[name]: value for name, value in values.items()})


def invalid(owner: type[BaseModel], data: Mapping[str, Any], error: SettingError) -> Exception:
    """Return ``error`` as pydantic's, with the names of the given fields and without values."""
    for setting, field in _RENAMED.items():
        error.args = (re.sub(rf"\b{setting}=", f"{field}=", str(error)),)
    detail = InitErrorDetails(type="value_error", loc=(), input=sorted(data), ctx={"error": error})
    return ValidationError.from_exception_data(owner.__name__, [detail], hide_input=True)


def secret(value: str | None) -> SecretStr | None:
    """Return a key as its field holds it."""
    return SecretStr(value) if value else None


def shown(settings: Settings) -> dict[str, Any]:
    """Return the values of the fields; an instruction that was not given shows as its template.

    Unless that has to be fetched at first use.
    """
    values = asdict(settings)
    values["api_key"] = secret(settings.api_key)
    if settings.query_instruction is None and settings.has_templates:
        values["query_instruction"] = settings.query_template
    if settings.document_instruction is None and settings.has_templates:
        values["document_instruction"] = settings.document_template
    return {field: values[setting] for field, setting in SETTING_OF.items()}

"""What is given to the constructor of ``EmberdEmbedding``, and what its fields show of it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Final

from llama_index.core.bridge.pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import InitErrorDetails

from emberd import Embedder, SettingError, Settings

_CUSTOMARY: Final = {"model": "model_name", "document_instruction": "text_instruction"}
# A slice of embed_batch_size is cut into requests below it; progress is asked for by the call.
_NOT_FIELDS: Final = {"batch_size", "show_progress"}

# What fields of other classes, and emberd's own settings, are called here.
_ELSEWHERE: Final = {**_CUSTOMARY, "api_base": "base_url", "batch_size": "embed_batch_size"}
MADE: Final = "embedder"  # what stands in for all settings, see from_embedder

# Field -> setting of emberd that it stands for.
SETTING_OF: Final = {
    _CUSTOMARY.get(setting.name, setting.name): setting.name
    for setting in fields(Settings)
    if setting.name not in _NOT_FIELDS
}


def embedder_of(owner: type[BaseModel], base: type[BaseModel], data: dict[str, Any]) -> Embedder:
    """Return the embedder that a constructor is asked for, or was given.

    Args:
        owner: The class of the object.
        base: ``EmberdEmbedding``; the classes between may have defaults of their own.
        data: The arguments; what is no field is taken out.

    Raises:
        SettingError: A field that does not exist, or a value that cannot be used.
    """
    kept, embedder = data.pop("identity", None), data.pop(MADE, None)
    _refuse_unknown(data, owner)
    embedder = _made(embedder, data) or Embedder(**_given(owner, base, data))
    _refuse_other_identity(kept, embedder)
    return embedder


def _refuse_unknown(data: Mapping[str, Any], owner: type[BaseModel]) -> None:
    known = owner.model_fields
    if unknown := sorted(set(data) - set(known)):
        raise SettingError(
            f"{owner.__name__} has no field {unknown[0]!r}{_called(unknown[0])}. "
            f"It has: {', '.join(sorted(known))}."
        )


def _made(embedder: Any, data: Mapping[str, Any]) -> Embedder | None:
    if embedder is None:
        return None
    if not isinstance(embedder, Embedder):
        raise SettingError(f"{embedder!r} is no emberd.Embedder.")
    if beside := sorted(name for name in data if name in SETTING_OF):
        raise SettingError(
            f"{beside[0]} is given beside an Embedder, which has all settings. Give it to the "
            f"Embedder, or use model_copy(update=...) afterwards."
        )
    return embedder


def _called(name: str) -> str:
    return f"; it is called {_ELSEWHERE[name]} here" if name in _ELSEWHERE else ""


def _refuse_other_identity(kept: str | None, embedder: Embedder) -> None:
    # Of a to_dict(): the same words may mean another model, where the files of a folder changed.
    if kept is not None and kept != embedder.identity:
        raise SettingError(
            f"The dictionary has identity={kept!r}, and its settings give {embedder.identity!r} "
            f"here. To change settings, use model_copy(update=...); a folder that holds another "
            f"model than it did needs a new object, and all texts embedded again."
        )


def _given(
    owner: type[BaseModel], base: type[BaseModel], data: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings that were given; what was not comes from a subclass's own defaults."""
    declared = {
        name
        for kind in owner.__mro__[: owner.__mro__.index(base)]
        for name in inspect.get_annotations(kind)
        if name in SETTING_OF and not owner.model_fields[name].is_required()
    }
    defaults = {
        name: owner.model_fields[name].get_default(call_default_factory=True) for name in declared
    }
    # None counts as not given; but an idle timeout of None means never.
    given = {
        name: value
        for name, value in data.items()
        if name in SETTING_OF and (value is not None or name == "idle_timeout")
    }
    return {SETTING_OF[name]: value for name, value in (defaults | given).items()}


def invalid(owner: type[BaseModel], data: Mapping[str, Any], error: SettingError) -> Exception:
    """Return ``error`` as pydantic's, which holds the names of what was given and no value."""
    for setting, field in _CUSTOMARY.items():
        error.args = (re.sub(rf"\b{setting}=", f"{field}=", str(error)),)
    detail = InitErrorDetails(type="value_error", loc=(), input=sorted(data), ctx={"error": error})
    return ValidationError.from_exception_data(owner.__name__, [detail], hide_input=True)


def secret(value: str | None) -> SecretStr | None:
    """Return a key as the field shows it."""
    return SecretStr(value) if value else None


def shown(settings: Settings) -> dict[str, Any]:
    """Return the fields' values; an instruction that was left out shows as its template."""
    values = asdict(settings)
    values["api_key"] = secret(settings.api_key)
    if settings.query_instruction is None:
        values["query_instruction"] = settings.query_template
    if settings.document_instruction is None:
        values["document_instruction"] = settings.document_template
    return {field: values[setting] for field, setting in SETTING_OF.items()}

"""The reranker for the arguments of ``EmberdRerank``, and the values of its fields."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from llama_index.core.bridge.pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import InitErrorDetails

from emberd import Reranker, SettingError

RERANKER: Final = "reranker"  # replaces all settings, see from_reranker

# The fields that are settings of emberd, which have the same names.
SETTINGS: Final = frozenset(
    inspect.signature(Reranker).parameters.keys() - {"manager", "client", "async_client"}
)
# Field of another class -> field of this class.
_ELSEWHERE: Final = {
    "model_name": "model",
    "api_base": "base_url",
    "top_k": "top_n",
    "query_instruction": "instruction",
}


def reranker_of(owner: type[BaseModel], base: type[BaseModel], data: dict[str, Any]) -> Reranker:
    """Return the reranker that a constructor is asked for, or was given.

    Args:
        owner: The class of the object.
        base: ``EmberdRerank``; a class derived from it may declare other defaults.
        data: The arguments; those that are not fields are removed.

    Raises:
        SettingError: A field does not exist, or a value is invalid.
    """
    given = data.pop(RERANKER, None)
    if unknown := sorted(set(data) - set(owner.model_fields)):
        name = unknown[0]
        hint = f"; it is called {_ELSEWHERE[name]} here" if name in _ELSEWHERE else ""
        raise SettingError(
            f"{owner.__name__} has no field {name!r}{hint}. "
            f"It has: {', '.join(sorted(owner.model_fields))}."
        )
    return _checked(given, data) if given is not None else _made(owner, base, data)


def _checked(reranker: Any, data: Mapping[str, Any]) -> Reranker:
    if not isinstance(reranker, Reranker):
        raise SettingError(f"{reranker!r} is not an emberd.Reranker.")
    if settings := sorted(SETTINGS.intersection(data)):
        raise SettingError(
            f"{settings[0]} is given together with an emberd.Reranker, which has all settings. "
            f"Give it to that object, or use model_copy(update=...) afterwards."
        )
    return reranker


def _made(owner: type[BaseModel], base: type[BaseModel], data: Mapping[str, Any]) -> Reranker:
    """Return a reranker with the given settings, and defaults that a subclass declares."""
    values = {
        name: owner.model_fields[name].get_default(call_default_factory=True)
        for kind in owner.__mro__[: owner.__mro__.index(base)]
        for name in inspect.get_annotations(kind)
        if name in SETTINGS and not owner.model_fields[name].is_required()
    }
    # None counts as not given, except that an idle timeout of None means never.
    values |= {
        name: value
        for name, value in data.items()
        if name in SETTINGS and (value is not None or name == "idle_timeout")
    }
    return Reranker(**values)


def invalid(owner: type[BaseModel], data: Mapping[str, Any], error: SettingError) -> Exception:
    """Return ``error`` as pydantic's, with the names of the given fields and without values."""
    detail = InitErrorDetails(type="value_error", loc=(), input=sorted(data), ctx={"error": error})
    return ValidationError.from_exception_data(owner.__name__, [detail], hide_input=True)


def secret(value: str | None) -> SecretStr | None:
    """Return a key as its field holds it."""
    return SecretStr(value) if value else None


def shown(reranker: Reranker) -> dict[str, Any]:
    """Return the values of the fields; an instruction that was not given shows as the default."""
    values = {name: value for name, value in asdict(reranker.settings).items() if name in SETTINGS}
    task = reranker.instruction or reranker.default_instruction
    return {**values, "api_key": secret(reranker.settings.api_key), "instruction": task}

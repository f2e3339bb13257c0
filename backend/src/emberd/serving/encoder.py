"""What stands behind the HTTP server: a model that turns texts into vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Prepared:
    """One text as its encoder wants it.

    Attributes:
        tokens: Its length in tokens, special tokens included.
        payload: Whatever the encoder needs; nobody else looks at it.
    """

    tokens: int
    payload: Any


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Which model an encoder is to load, and how it is to run it.

    Attributes:
        model: Name on the hub, or a folder.
        revision: Commit, branch or tag on the hub; None for the newest.
        device: ``"cpu"``, ``"cuda"``, ``"mps"``; None for the best that is there.
        dtype: ``"bfloat16"`` or ``"float32"``; None for what the device computes well.
        context_tokens: Longest text that must fit, in tokens; None for what the model card says.
    """

    model: str
    revision: str | None = None
    device: str | None = None
    dtype: str | None = None
    context_tokens: int | None = None


class Encoder(Protocol):
    """A model. ``prepare`` may be called while another thread is in ``encode``.

    Attributes:
        name: What the model is, for people and for ``/model_info``.
        dimensions: Length of a native vector.
        context_tokens: A text must have fewer tokens than this.
        matryoshka: Whether the model was trained so that the head of a vector is a vector.
        batch_texts: Most texts that one ``encode`` is given.
        batch_tokens: Most tokens that one ``encode`` is given, unless one text alone has more.
            It bounds how long a short request waits behind a long one.
        pooling: How token vectors become one, ``"mean"``, ``"last"`` or ``"cls"``.
        dtype: Number format of the weights.
        device: Where the model runs, ``"cpu"`` or ``"cuda"``.
    """

    name: str
    dimensions: int
    context_tokens: int
    matryoshka: bool
    batch_texts: int
    batch_tokens: int
    pooling: str
    dtype: str
    device: str

    def load(self) -> None:
        """Make the model ready to encode.

        Raises:
            StartError: It cannot be loaded; the text says why and what to do.
        """

    def prepare(self, texts: Sequence[str]) -> list[Prepared]:
        """Return ``texts`` in the form that ``encode`` takes, in their order."""

    def encode(self, batch: Sequence[Prepared]) -> NDArray[np.float32]:
        """Return the vectors of ``batch``: shape (len(batch), dimensions), norm one."""


@runtime_checkable
class TokenEncoder(Protocol):
    """An encoder that shows its tokens; without it token ids are refused."""

    def tokenize(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Return the token ids of ``text``."""

    def prepare_ids(self, ids: Sequence[int]) -> Prepared:
        """Return token ids in the form that ``encode`` takes.

        Raises:
            ValueError: An id is not in the vocabulary.
        """

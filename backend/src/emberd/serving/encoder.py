"""The interface of an encoder: a model that turns texts into vectors, or prompts into scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class PreparedText:
    """One text in the form that its encoder takes.

    Attributes:
        tokens: Its length in tokens, special tokens included.
        payload: Opaque to all but the encoder.
    """

    tokens: int
    payload: Any


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Which model an encoder loads, and how it runs it.

    Attributes:
        model: Name on the hub, or a folder.
        revision: Commit, branch or tag on the hub; None for the newest.
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``; None for the best that is available.
        dtype: ``"bfloat16"`` or ``"float32"``; None for the faster one on the device.
        context_tokens: Longest text that must fit, in tokens; None for the limit of the model card.
    """

    model: str
    revision: str | None = None
    device: str | None = None
    dtype: str | None = None
    context_tokens: int | None = None


class Encoder(Protocol):
    """A model. ``prepare`` may be called while another thread is in ``encode``.

    Attributes:
        name: Name of the model for messages and for ``/model_info``.
        dimensions: Length of a native vector.
        context_tokens: A text must have fewer tokens than this.
        batch_texts: Most texts in one call of ``encode``.
        batch_tokens: Most tokens in one call of ``encode``, unless a single text has more. It
            bounds how long a short request waits behind a long one.
        pooling: How token vectors become one: ``"mean"``, ``"last"`` or ``"cls"``.
        dtype: Number format of the weights.
        device: Where the model runs: ``"cpu"``, ``"cuda"`` or ``"mps"``.
    """

    name: str
    dimensions: int
    context_tokens: int
    batch_texts: int
    batch_tokens: int
    pooling: str
    dtype: str
    device: str

    def load(self) -> None:
        """Load the model.

        Raises:
            StartError: It cannot be loaded; the message says why and what to do.
        """

    def prepare(self, texts: Sequence[str]) -> list[PreparedText]:
        """Return ``texts`` in the form that ``encode`` takes, in their order."""

    def encode(self, batch: Sequence[PreparedText]) -> NDArray[np.float32]:
        """Return the unit vectors of ``batch``, shape (len(batch), dimensions)."""


@runtime_checkable
class Scorer(Protocol):
    """An encoder whose rows are probabilities of tokens, and not vectors: that of a reranker.

    Its ``dimensions`` is the number of tokens that it compares.
    """

    def with_labels(self, item: PreparedText, labels: Sequence[int]) -> PreparedText:
        """Return a prompt whose next token is compared among ``labels``.

        Raises:
            ValueError: A label is not in the vocabulary.
        """


@runtime_checkable
class TokenEncoder(Protocol):
    """An encoder that gives access to its tokens; other encoders refuse token ids."""

    def tokenize(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Return the token ids of ``text``."""

    def prepare_ids(self, ids: Sequence[int]) -> PreparedText:
        """Return token ids in the form that ``encode`` takes.

        Raises:
            ValueError: An id is not in the vocabulary.
        """

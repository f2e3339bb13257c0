"""Recall on the multilingual set: how often the answer is among the nearest passages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from emberd.catalog import Model
from emberd.client.vectors import cut

if TYPE_CHECKING:
    from emberd.client.vectors import Floats

PLACES: Final = (1, 5)
_PARTS: Final = (1, 2, 4)
"""Native length, half of it, a quarter of it."""


@dataclass(frozen=True, slots=True)
class Row:
    """Recall at one length of vectors.

    Attributes:
        dimensions: The length.
        as_queries: Recall at each of ``PLACES`` with queries embedded as queries.
        as_documents: The same with queries embedded as documents.
    """

    dimensions: int
    as_queries: tuple[float, ...]
    as_documents: tuple[float, ...]


def measure(
    passages: Floats, as_queries: Floats, as_documents: Floats, answers: Sequence[int], model: Model
) -> list[Row]:
    """Return a row for each length of vectors.

    Args:
        passages: Native vectors of the passages, ``(n, d)``.
        as_queries: Those of the questions as queries, ``(m, d)``.
        as_documents: Those of the questions as documents, ``(m, d)``.
        answers: Which passage answers each question.
        model: What the catalog knows of the model.
    """
    native = passages.shape[1]
    lengths = [native // part for part in _PARTS if native // part >= model.min_dimensions]
    return [
        Row(
            length,
            _recall(cut(as_queries, length), cut(passages, length), answers),
            _recall(cut(as_documents, length), cut(passages, length), answers),
        )
        for length in lengths
    ]


def _recall(questions: Floats, passages: Floats, answers: Sequence[int]) -> tuple[float, ...]:
    scores = questions @ passages.T
    of_answer = scores[np.arange(len(answers)), answers]
    nearer = (scores > of_answer[:, None]).sum(axis=1)
    return tuple(float((nearer < place).mean()) for place in PLACES)
